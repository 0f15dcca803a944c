"""What versions of transformers are known to do otherwise with any folder: each with a proof, and a
mark in docs/versions.md.

Nothing here excuses what the model computes: `made_up_logits`, of the same made-up pixels for all,
have to be equal in any case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from tests.compat.checkpoints import CASES, FAMILIES
from tests.compat.look import picture
from tests.compat.run import PIXELS, Look, Seen, differences
from tests.conftest import CLIP
from tests.original import pixels
from tests.original.faults import WITHOUT_TORCHVISION

#: Rule files whose checkpoints here have a config that says `image_aspect_ratio: pad`; `llava` is
#: their model's type.
PADDED = ("llava-v1.5", "sharegpt4v", "hf-layouts", "bakllava", "llava-med-v1.5")
#: Of the pictures that the towers of small twins take: 14 by 14 patches of 14 pixels.
TWIN_SIDE = 196
#: Rule files whose classes take videos.
WITH_VIDEOS = ("llava-next-video", "llava-onevision", "llava-interleave-onevision", "video-llava")


@dataclass(frozen=True)
class Known:
    """What a version is known to do otherwise.

    Attributes:
        cell: in the table of docs/versions.md, with the mark of a footnote.
        is_in: whether a version has it, of its two first numbers.
        concerns: whether it shows in a folder of this name, with this version.
        shows: differences from the installed version that it always makes.
        excuses: differences that may follow.
        closes: words of which one is in what AutoProcessor says if it doesn't open the folder;
            empty if it does.
        proof: what of a folder isn't explained by it, in words; from that version and the installed
            one.
    """

    cell: str
    is_in: Callable[[tuple[int, ...]], bool]
    concerns: Callable[[str, Seen], bool]
    shows: frozenset[str] = frozenset()
    excuses: frozenset[str] = frozenset()
    closes: tuple[str, ...] = ()
    proof: Callable[[str, Seen, Seen], Iterator[str]] = lambda name, seen, installed: iter(())


def rules_of(name: str) -> str:
    """The rule file that a folder is made by."""
    return CASES[name].rules if name in CASES else FAMILIES[name].rules


def _made_as_known(name: str, seen: Seen, installed: Seen) -> Iterator[str]:
    """4.46's pixels are the middle of the picture, the installed version's the whole of it,
    filled up to a square.
    """
    tower = CASES[name].tower if name in CASES else CLIP  # a twin's: the same numbers, another side
    recipe = pixels.recipe_of(
        {"image_aspect_ratio": "pad"}, json.loads((tower / "preprocessor_config.json").read_text())
    )
    if name in FAMILIES:
        recipe = replace(recipe, side=TWIN_SIDE)
    shown = picture(recipe.side)
    for of, wanted in (
        (seen, pixels.cropped(recipe, shown)),
        (installed, pixels.original(recipe, shown, "single")),
    ):
        got = of.arrays.get(f"{name}/pixel_values")
        if got is None or got.shape != (1, *wanted.shape) or np.abs(got[0] - wanted).max() > PIXELS:
            yield f"the pixels of {of.said['transformers']} are others"


_PICTURE = frozenset({"image_processor", "pixel_values", "picture_logits"})

CROPPING = Known(
    "yes ¹",
    lambda version: version <= (4, 46),
    lambda name, seen: rules_of(name) in PADDED,
    shows=_PICTURE,
    excuses=frozenset({"picture_generated"}),
    proof=_made_as_known,
)
TORCHVISION = Known(
    "yes ²",
    lambda version: version >= (4, 52),
    lambda name, seen: rules_of(name) in WITH_VIDEOS and not seen.said["has_torchvision"],
    closes=WITHOUT_TORCHVISION,
)
#: 4.46 knows no image processor that pads, and none at all for this model's type.
UNKNOWN_CLASS = Known(
    "model and tokenizer ³",
    lambda version: version <= (4, 46),
    lambda name, seen: rules_of(name) == "vip-llava",
    shows=_PICTURE | {"picture_generated"},
    closes=("ValueError: Unrecognized image processor in ",),
)
KNOWN = (CROPPING, TORCHVISION, UNKNOWN_CLASS)


def known(name: str, seen: Seen) -> Known | None:
    """What a version is known to do otherwise with a folder, if there is anything."""
    version = tuple(map(int, seen.said["transformers"].split(".")[:2]))
    found = [one for one in KNOWN if one.is_in(version) and one.concerns(name, seen)]
    assert len(found) < 2, f"{name}: known are {[one.cell for one in found]}"
    return found[0] if found else None


def unexplained(name: str, version: str, seen: Look) -> list[str]:
    """How a version, asked about a folder, differs from the installed one beyond what is known of
    it.

    What is known and doesn't occur is told as well.
    """
    one, installed = seen[version], seen[""]
    found, of = differences(name, one, installed), known(name, one)
    shows, excuses = (of.shows, of.excuses) if of else (frozenset[str](), frozenset[str]())
    wrong = [difference for difference in found if difference not in shows | excuses]
    wrong += [f"no difference in {difference}" for difference in sorted(shows.difference(found))]
    if "error" in one.said[name]:
        return wrong
    closes, closed = of.closes if of else (), one.said[name].get("closed")
    if bool(closed) != bool(closes) or (closed and not any(words in closed for words in closes)):
        wrong.append(f"AutoProcessor: {closed}")
    return wrong + (list(of.proof(name, one, installed)) if of else [])
