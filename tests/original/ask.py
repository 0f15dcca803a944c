"""Ask one version of transformers about converted folders: open each as a user would, and write
down all that comes of it.

`python -m tests.original.ask OUT FOLDER…` writes OUT, a JSON file that `answer.read` reads. Folders
are named as their `Target`s. All versions run this module, so it uses only what all of them have.
It judges nothing.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}

import numpy as np
import torch
import transformers

from tests.compat.look import open_processor
from tests.original.answer import Answer, FolderAnswer, Forward, Words
from tests.original.convert import Target
from tests.original.facts import Case, Family, Floats, Pixels, Reading, family, picture
from tests.original.pixels import case_pixels


class Opened:
    """A folder, opened by the transformers that is on the path."""

    def __init__(self, folder: Path, facts: Family) -> None:
        self.facts = facts
        self.config = json.loads((folder / "config.json").read_text())
        self.image_token: int = self.config["image_token_index"]
        self.video_token: int | None = self.config.get("video_token_index")
        self.processor, self.closed = _open_processor(folder)
        self.model = _open_model(folder, self.config["architectures"][0])
        self.folder = folder

    def words(self, tokenizer: Any) -> Words:
        """What a tokenizer makes of texts and of recorded prompts with pictures put in, as the
        processors put them in.
        """
        prompts = {}
        for name, case in self.facts.cases.items():
            texts = [
                reading.prompt_with("<video>" if case.video else "<image>")
                for reading in case.readings
            ]
            prompts[name] = tuple(tuple(tokenizer(text).input_ids) for text in texts)
        return Words(
            tuple(tuple(tokenizer(text.text).input_ids) for text in self.facts.texts), prompts
        )

    def slow_words(self) -> tuple[Words | None, str | None]:
        """Those of the tokenizer for `use_fast=False`, or why there is none."""
        try:
            return self.words(
                transformers.AutoTokenizer.from_pretrained(self.folder, use_fast=False)
            ), None
        except Exception as error:
            return None, _words(error)

    def answer(self, case: Case) -> Answer:
        """Everything, or as much as works."""
        pictures = [picture(name) for name in case.pictures]
        made = Answer(
            alone=tuple(self._alone(case, reading, pictures) for reading in case.readings)
        )
        try:
            prompt = self.processor.apply_chat_template(
                case.messages, add_generation_prompt=True, tokenize=False
            )
            # The research code has the same mark for a video as for a picture.
            made = replace(made, prompt=prompt.replace("<video>", "<image>"))
            inputs = self._inputs(prompt, case, pictures)
            ids = tuple(inputs["input_ids"][0].tolist())
            made = replace(made, ids=ids, pixels=_pixels(inputs, len(pictures)))
            return replace(made, whole=self._forward(case, case.readings[0], ids, dict(inputs)))
        except Exception as error:
            return replace(made, error=_words(error))

    def _inputs(self, prompt: str, case: Case, pictures: list[Any]) -> Any:
        if case.video:
            if self.closed:
                raise ImportError(self.closed)
            frames = np.stack([np.asarray(frame) for frame in pictures])
            return self.processor(text=[prompt], videos=[frames], return_tensors="pt")
        if not pictures:
            return self.processor(text=[prompt], return_tensors="pt")
        try:
            return self.processor(text=[prompt], images=[pictures], return_tensors="pt")
        except ValueError:  # before 4.50, some processors know no lists of lists
            return self.processor(text=[prompt], images=pictures, return_tensors="pt")

    def _alone(self, case: Case, reading: Reading, pictures: list[Any]) -> Forward:
        ids = tuple(reading.ids_with(self._token(case)))
        made = case_pixels(self.facts, case, pictures)
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        }
        try:
            return self._forward(case, reading, ids, {**inputs, **self._pixel_inputs(case, made)})
        except Exception as error:
            return Forward(_words(error), None, (), ())

    def _pixel_inputs(self, case: Case, made: list[Floats]) -> dict[str, Any]:
        """Arrays of pixels under the names that the model's class has for them."""
        if case.video:
            return {"pixel_values_videos": torch.from_numpy(np.stack(made))}
        if not made:
            return {}
        if "image_grid_pinpoints" not in self.config:
            return {"pixel_values": torch.from_numpy(np.stack(made))}
        tiled = [array if array.ndim == 4 else array[None] for array in made]
        most = max(map(len, tiled))
        filled = [
            np.concatenate([array, np.zeros((most - len(array), *array.shape[1:]), np.float32)])
            for array in tiled
        ]
        inputs = {
            "pixel_values": torch.from_numpy(np.stack(filled)),
            "image_sizes": torch.tensor(case.sizes),
        }
        if (
            len(made) > 1
            and self.config["model_type"] == "llava_onevision"
            and self._knows_several()
        ):
            inputs["batch_num_images"] = torch.tensor([len(made)])
        return inputs

    def _knows_several(self) -> bool:
        """Whether this version's OneVision can be told that pictures aren't tiled."""
        return "batch_num_images" in inspect.signature(self.model.forward).parameters

    def _token(self, case: Case) -> int:
        token = self.video_token if case.video else self.image_token
        assert token is not None, "the folder has no token for videos"
        return token

    def _forward(
        self, case: Case, reading: Reading, ids: tuple[int, ...], inputs: dict[str, Any]
    ) -> Forward:
        error = around = None
        with torch.inference_mode():
            try:
                logits = self.model(**inputs).logits
            except Exception as found:
                error = _words(found)
                if not case.pictures:
                    around, logits = (
                        "the language model alone",
                        self.model.language_model(**inputs).logits,
                    )
                elif (
                    self.config["model_type"] == "llava_onevision"
                    and len(case.pixels) > 1
                    and not self._knows_several()
                ):
                    with self._one_tile_each():
                        around, logits = (
                            "told that each picture is one tile",
                            self.model(**inputs).logits,
                        )
                else:
                    return Forward(error, None, (), ())
        logits = logits[0, :, : reading.logits_of].float().numpy()
        text = [place for place, token in enumerate(ids) if token != self._token(case)]
        return Forward(
            error,
            around,
            tuple(map(float, logits[-1, reading.places])),
            tuple(map(int, logits[text].argmax(-1))),
        )

    @contextmanager
    def _one_tile_each(self) -> Iterator[None]:
        """What OneVision believes of several pictures in later versions."""
        module = transformers.models.llava_onevision.modeling_llava_onevision
        with patch.object(module, "image_size_to_num_patches", lambda **sizes: 1):
            yield


def ask(folder: Path) -> FolderAnswer:
    """Ask about a folder."""
    torch.set_num_threads(1)
    version, has_torchvision = (
        transformers.__version__,
        bool(transformers.utils.is_torchvision_available()),
    )
    try:
        opened = Opened(folder, family(Target.of(folder.name).family))
        return FolderAnswer(
            version,
            None,
            opened.closed,
            has_torchvision,
            opened.config["model_type"],
            opened.image_token,
            opened.video_token,
            opened.words(opened.processor.tokenizer),
            *opened.slow_words(),
            {name: opened.answer(case) for name, case in opened.facts.cases.items()},
        )
    except Exception as error:  # the other folders are still worth a question
        return FolderAnswer(
            version, _words(error), None, has_torchvision, "", 0, None, None, None, None, {}
        )


def _open_processor(folder: Path) -> tuple[Any, str | None]:
    """A folder's processor, and why AutoProcessor didn't open it, which is accepted only where
    torchvision may be to blame.
    """
    processor, closed = open_processor(folder)
    if closed and (
        transformers.utils.is_torchvision_available()
        or not (folder / "video_preprocessor_config.json").is_file()
    ):
        raise ValueError(closed)
    return processor, closed


def _open_model(folder: Path, name: str) -> Any:
    dtype = {"dtype" if transformers.__version__[0] != "4" else "torch_dtype": torch.float32}
    # 4.46 leaves tensors of a checkpoint with two dtypes in theirs.
    return getattr(transformers, name).from_pretrained(folder, **dtype).float().eval()


def _pixels(inputs: Any, count: int) -> tuple[Pixels, ...]:
    """The processor's pixels, one for each picture or for the video."""
    found = [inputs[name] for name in ("pixel_values", "pixel_values_videos") if name in inputs]
    if not found:
        return ()
    array = found[0].float().numpy()
    if array.ndim == 5 and array.shape[0] == 1 and count > 1 and "pixel_values" in inputs:
        array = array[0]  # pictures of one turn
    return tuple(Pixels.of(_without_filling(one)) for one in array)


def _without_filling(array: Floats) -> Floats:
    """Tiles of zeros are left out behind a picture's own."""
    if array.ndim == 4:
        while len(array) > 1 and not array[-1].any():
            array = array[:-1]
    return array


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main(out: str, *folders: str) -> None:
    transformers.utils.logging.disable_progress_bar()
    Path(out).write_text(
        json.dumps({Path(folder).name: asdict(ask(Path(folder))) for folder in folders})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
