"""Image processor, processor and chat template of the output, in files that old and new transformers open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import read_object
from llava_remap.errors import Problem, refuse
from llava_remap.folder.json_file import write_json
from llava_remap.target import IMAGE_PROCESSORS, PlacedToken, Tower

PREPROCESSOR = "preprocessor_config.json"
_REPLACE = "Replace the file by the original one."


def find_image_processor(folders: Sequence[Path]) -> Path | None:
    """The first of the sources' folders that has an image processor's file."""
    return next((folder for folder in folders if (folder / PREPROCESSOR).is_file()), None)


def stock_image_processor(tower: Tower) -> dict[str, Any]:
    """The image processor that towers of this kind are trained with, for this tower's image size."""
    kind, side = str(tower.facts["model_type"]), tower.facts["image_size"]
    square = {"height": side, "width": side}
    sizes = {"size": {"shortest_edge": side}, "crop_size": square} if kind == "clip_vision_model" else {"size": square}
    return {**IMAGE_PROCESSORS[kind], **sizes}


def image_processor_problems(folder: Path | None, tower: Tower) -> list[Problem]:
    """LR604 where the given image processor makes images of another size than the tower's: another number of image tokens."""
    if folder is None:
        return []
    content = read_object(folder / PREPROCESSOR, "LR113", _REPLACE, unique=False)
    size = content.get("crop_size") or content.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if size is None or size == tower.facts["image_size"]:
        return []
    if not isinstance(size, int):
        return [Problem("LR113", f"{folder / PREPROCESSOR}: the image size is {size!r}.", _REPLACE)]
    patch = int(tower.facts["patch_size"])
    return [
        Problem(
            "LR604",
            f"images of {size} px make {(size // patch) ** 2} tokens ({folder / PREPROCESSOR}); the tower has "
            f"{tower.facts['image_tokens']} ({tower.facts['image_size']} px).",
            "Give the tower that the checkpoint was trained with, with its preprocessor_config.json.",
        )
    ]


def write_image_processor(folder: Path | None, tower: Tower, output: Path, processor_class: str) -> None:
    """Write `preprocessor_config.json`: the source's, in today's form, or the stock one.

    Raises:
        RemapError: LR113 where transformers can't open the source's.
    """
    from transformers import AutoImageProcessor

    path = output / PREPROCESSOR
    if folder is None:
        content = stock_image_processor(tower)
    else:
        try:  # opening it brings files of any age (`size: 336`, `feature_extractor_type`) into one form
            content = AutoImageProcessor.from_pretrained(folder, local_files_only=True).to_dict()
        except Exception as error:  # whatever its code raises: the file is the user's
            raise refuse(
                "LR113",
                f"transformers can't open {folder / PREPROCESSOR}: {_one_line(error)}.",
                _REPLACE,
            ) from error
    write_json(path, {**content, "processor_class": processor_class})


def write_processor(
    output: Path, processor_class: str, config: Mapping[str, Any], image: PlacedToken | None, chat_template: str | None
) -> None:
    """Write `processor_config.json` without the nested image processor of 5.x, and the chat template in both forms."""
    token = {"image_token": image.text} if image is not None else {}
    write_json(output / "processor_config.json", {**config, **token, "processor_class": processor_class})
    if chat_template is not None:
        write_json(output / "chat_template.json", {"chat_template": chat_template})
        (output / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def check_processor(output: Path, processor_class: str, image: PlacedToken | None, image_tokens: int | None) -> None:
    """Open what was written as a user would, and take one picture and one sentence through it.

    Raises:
        RemapError: LR605 where it doesn't open as the class wanted, or fails; LR604 for another number of image tokens.
    """
    from PIL import Image
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(output, local_files_only=True)
        if type(processor).__name__ != processor_class:
            raise ValueError(f"AutoProcessor opens it as a {type(processor).__name__}")
        content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": "What is it?"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        if image is None:
            return
        ids = processor(images=Image.new("RGB", (64, 48)), text=prompt, return_tensors="pt")["input_ids"][0].tolist()
    except Exception as error:  # whatever the processor's code raises
        raise refuse(
            "LR605",
            f"the {processor_class} that was made doesn't work: {_one_line(error)}.",
            "See `processor` of the rule file and the source's preprocessor_config.json and tokenizer files.",
        ) from error
    if image_tokens is not None and ids.count(image.id) != image_tokens:
        raise refuse(
            "LR604",
            f"the processor made {ids.count(image.id)} image tokens for one picture, the tower makes {image_tokens}.",
            "See `processor.config` and `chat_template` of the rule file.",
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
