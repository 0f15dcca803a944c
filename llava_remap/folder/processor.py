"""Image processor, processor and chat template of the output, in files that old and new transformers open."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_remap.errors import Problem, refuse
from llava_remap.folder.json_file import write_json
from llava_remap.target import IMAGE_PROCESSORS, Tower

PREPROCESSOR = "preprocessor_config.json"


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
    try:
        content = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [Problem("LR113", f"{folder / PREPROCESSOR}: {error}.", "Replace the file by the original one.")]
    size = content.get("crop_size") or content.get("size")
    side = size if isinstance(size, int) else (size or {}).get("height") or (size or {}).get("shortest_edge")
    if side is None or side == tower.facts["image_size"]:
        return []
    patch = int(tower.facts["patch_size"])
    return [
        Problem(
            "LR604",
            f"images of {side} px make {(side // patch) ** 2} tokens ({folder / PREPROCESSOR}); the tower has "
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
                f"transformers can't open {folder / PREPROCESSOR}: {' '.join(str(error).split())}.",
                "Replace the file by the original one.",
            ) from error
    write_json(path, {**content, "processor_class": processor_class})


def write_processor(
    output: Path, processor_class: str, config: Mapping[str, Any], image_token: str, chat_template: str | None
) -> None:
    """Write `processor_config.json` without the nested image processor of 5.x, and the chat template in both forms."""
    write_json(output / "processor_config.json", {**config, "image_token": image_token, "processor_class": processor_class})
    if chat_template is not None:
        write_json(output / "chat_template.json", {"chat_template": chat_template})
        (output / "chat_template.jinja").write_text(chat_template, encoding="utf-8")


def check_processor(output: Path) -> None:
    """Open what was written as a user would.

    Raises:
        RemapError: LR601 where it doesn't open.
    """
    from transformers import AutoProcessor

    try:
        AutoProcessor.from_pretrained(output, local_files_only=True)
    except Exception as error:  # whatever the processor's code raises
        raise refuse(
            "LR601",
            f"AutoProcessor doesn't open the processor that was made: {' '.join(str(error).split())}.",
            "Please report this with the rule file's name.",
        ) from error
