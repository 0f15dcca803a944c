"""The recorded facts, as values. Fields and tolerances are described in
`tests/data/original/README.md`.

Every version of transformers imports this module, so it needs numpy and safetensors only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

FACTS = Path(__file__).parents[1] / "data" / "original"
#: The research code's mark of a picture among token ids.
IMAGE = -200
#: Of samples and mean of pixels, where their digest differs.
PIXEL_TOLERANCE = 1e-5

Floats = NDArray[np.float32]
Message = dict[str, Any]


@dataclass(frozen=True)
class Pixels:
    """What is recorded of an array of float32 pixels.

    Attributes:
        shape: [3, height, width], or with tiles or frames as a first axis.
        sha256: of the bytes, in C order.
        mean: of all values.
        samples: 64 values at the places that the README of the facts names.
    """

    shape: tuple[int, ...]
    sha256: str
    mean: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, array: Floats) -> Pixels:
        """Describe an array as the facts do."""
        array = np.ascontiguousarray(array, np.float32)
        places = np.random.default_rng(0).integers(0, array.size, 64)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return cls(
            array.shape,
            digest,
            float(array.mean(dtype=np.float64)),
            tuple(map(float, array.reshape(-1)[places])),
        )

    @classmethod
    def read(cls, said: dict[str, Any]) -> Pixels:
        return cls(tuple(said["shape"]), said["sha256"], said["mean"], tuple(said["samples"]))

    @property
    def tiles(self) -> int:
        return self.shape[0] if len(self.shape) == 4 else 1

    def difference(self, other: Pixels) -> str | None:
        """What differs, in words; None where all is equal within `PIXEL_TOLERANCE`. One tile
        needs no axis of its own.
        """
        if self.tiles != other.tiles:
            return f"{self.tiles} tiles, not {other.tiles}"
        if self.shape[-3:] != other.shape[-3:]:
            return f"shape {self.shape}, not {other.shape}"
        if self.sha256 == other.sha256:
            return None
        differences = np.abs(np.subtract(self.samples, other.samples))
        if differences.max() < PIXEL_TOLERANCE and abs(self.mean - other.mean) < PIXEL_TOLERANCE:
            return None
        return f"{differences.mean():.2g} off in the mean"


@dataclass(frozen=True, eq=False)
class Reading:
    """One of the things that the research code makes of a conversation.

    Attributes:
        name: what is special about this reading: the system text (`given`, `empty`, `default`), and
            `one` for one BOS.
        prompt: the text, with `<image>` for each picture.
        ids: tokens, with `IMAGE` for each picture.
        image_positions: how many positions each picture takes.
        argmax: the best token at each position that is text, -1 where two are too near to each
            other.
        logits_of: how many logits the recorded ones were chosen from.
        sd: the standard deviation of all those logits, the unit of comparisons.
        logits: those of the last position at `places`.
    """

    name: str
    prompt: str
    ids: tuple[int, ...]
    image_positions: tuple[int, ...]
    argmax: tuple[int, ...]
    logits_of: int
    sd: float
    logits: Floats

    @property
    def places(self) -> NDArray[np.int64]:
        """Indices of the recorded logits."""
        return np.sort(np.random.default_rng(1).choice(self.logits_of, 256, replace=False))

    def ids_with(self, token: int) -> list[int]:
        """The ids of the whole sequence, with `token` at each position of a picture."""
        positions = iter(self.image_positions)
        return [
            i for one in self.ids for i in ([token] * next(positions) if one == IMAGE else [one])
        ]

    def prompt_with(self, image_token: str) -> str:
        """The text of the whole sequence, with `image_token` at each position of a picture."""
        first, *others = self.prompt.split("<image>")
        assert len(others) == len(self.image_positions)
        return first + "".join(
            image_token * n + text for n, text in zip(self.image_positions, others, strict=True)
        )


@dataclass(frozen=True)
class Case:
    """A conversation.

    Attributes:
        name: within the family.
        messages: for `apply_chat_template`.
        pictures: names, in order; the frames of one video if `video`.
        pixels: keys of the family's pixels, one for each picture or for the video.
        sizes: [height, width] of each picture.
        grids: [rows, columns] of each picture's tiles, or None where it isn't tiled.
        video: whether the pictures are frames.
        counted: whether a folder has to meet the facts.
        readings: at least one; equal to any of them is right.
    """

    name: str
    messages: list[Message]
    pictures: tuple[str, ...]
    pixels: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int] | None, ...]
    video: bool
    counted: bool
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Text:
    """A text and what the tokenizer alone makes of it."""

    text: str
    ids: tuple[int, ...]
    counted: bool


@dataclass(frozen=True)
class Family:
    """The facts of one checkpoint.

    Attributes:
        name: of its folder.
        rules: the rule file that the facts name.
        sources: for each `--source NAME=`, the folders that are copied into one.
        default_system: the system text that the research code's template begins with; may be empty.
        tolerance: of logits, in standard deviations.
        texts: for the tokenizer alone.
        pixels: what the vision tower got, by picture and mode.
        picture_digests: sha256 of the bytes of each picture.
        cases: by name.
    """

    name: str
    rules: str
    sources: dict[str, tuple[str, ...]]
    default_system: str
    tolerance: float
    texts: tuple[Text, ...]
    pixels: dict[str, Pixels]
    picture_digests: dict[str, str]
    cases: dict[str, Case]

    def file(self, source: str, name: str) -> Path | None:
        """A file of one of the sources, as it is once they are put together."""
        folders = [FACTS / part for part in reversed(self.sources[source])]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)

    def content(self, source: str, name: str) -> Any:
        """A JSON file of one of the sources."""
        path = self.file(source, name)
        assert path is not None, f"{self.name}: no {name} in {source}"
        return json.loads(path.read_text())

    @property
    def config(self) -> Any:
        """The config that the research code reads: the adapter's, if there is one."""
        return self.content("adapter" if "adapter" in self.sources else "model", "config.json")


FAMILIES = tuple(sorted(path.parent.name for path in FACTS.glob("families/*/facts.json")))


@cache
def family(name: str) -> Family:
    """Read the facts of a family."""
    folder = FACTS / "families" / name
    said = json.loads((folder / "facts.json").read_text())
    logits = load_file(folder / "logits.safetensors")
    return Family(
        name,
        said["rules"],
        {source: tuple(parts) for source, parts in said["sources"].items()},
        said["default_system"],
        said["tolerance"],
        tuple(
            Text(text["text"], tuple(text["ids"]), text.get("counted", True))
            for text in said["texts"]
        ),
        {key: Pixels.read(pixels) for key, pixels in said["pixels"].items()},
        said["picture_digests"],
        {key: _case(key, case, logits) for key, case in said["cases"].items()},
    )


def _case(name: str, said: dict[str, Any], logits: dict[str, Any]) -> Case:
    pictures = tuple(said["pictures"])
    return Case(
        name,
        said["messages"],
        pictures,
        tuple(said.get("pixels", ())),
        tuple((height, width) for height, width in said.get("sizes", ())),
        tuple((rows, columns) for rows, columns in said["grid"])
        if "grid" in said
        else (None,) * len(pictures),
        said.get("video", False),
        said["counted"],
        tuple(
            _reading(reading, logits[f"{name}/{n}"]) for n, reading in enumerate(said["readings"])
        ),
    )


def _reading(said: dict[str, Any], logits: Floats) -> Reading:
    return Reading(
        "/".join(said[key] for key in ("system", "bos") if key in said),
        said["prompt"],
        tuple(said["ids"]),
        tuple(said["image_positions"]),
        tuple(said["argmax"]),
        said["logits_of"],
        said["sd"],
        logits,
    )


@cache
def _pictures() -> Any:
    """The module beside the facts that makes every picture."""
    spec = importlib.util.spec_from_file_location("original_pictures", FACTS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(name: str) -> Image.Image:
    """The picture of a name, RGB."""
    made: Image.Image = _pictures().picture(name)
    return made


def picture_digest(name: str) -> str:
    """sha256 of the bytes of a picture."""
    digest: str = _pictures().digest(name)
    return digest
