"""Image processor, processor and chat template of the output, in files that old and new versions
of transformers open.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import has_file
from llava_remap.core.problem import Problem, refuse
from llava_remap.core.wording import one_line
from llava_remap.folder.scratch import AS_DATA, panics_as_errors, write_json
from llava_remap.rulefile import Processor, shipped_chat_parts, shipped_class_part
from llava_remap.target_model import IMAGE_PROCESSORS, PlacedToken, TargetConfig, Tower, read_beside

PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
#: The video processor's file, since transformers 4.52.
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
_CLASS = "processor_class"
#: Pixels; the towers' own pictures have at most 448. Trying the processor takes 12 bytes for each
#: pixel of a picture.
_LARGEST_SIDE = 4096
#: The most patches in a row of a picture, and the largest other number in a processor's config.
#: Trying the processor makes an image token for each patch.
_MOST_PATCHES, _LARGEST_NUMBER = 512, 1_000_000
#: Values of an image processor that have no right default.
_NEEDED = ("image_mean", "image_std", "size")
_SIDES = ("size", "crop_size", "pad_size", "image_grid_pinpoints")
#: The mean colour, rounded to 8 bits, is less than this many standard deviations from 0.
_MEAN_COLOUR = 0.05
_REPLACE = "Replace it with the original file."


def find_image_processor(folders: Sequence[Path]) -> Path | None:
    """The first of the sources' folders that has an image processor's file."""
    return next((folder for folder in folders if has_file(folder / PREPROCESSOR)), None)


def stock_image_processor(tower: Tower) -> dict[str, Any]:
    """The image processor with which stock towers of this kind are trained, with this tower's image
    size; empty for a kind without stock towers.
    """
    kind, side = str(tower.facts["model_type"]), tower.facts.get("image_size")
    if kind not in IMAGE_PROCESSORS:
        return {}
    square = {"height": side, "width": side}
    sizes = (
        {"size": {"shortest_edge": side}, "crop_size": square}
        if IMAGE_PROCESSORS[kind].get("do_center_crop")
        else {"size": square}
    )
    return {**IMAGE_PROCESSORS[kind], **sizes}


def stock_notes(rules: Processor | None, target: TargetConfig) -> Iterator[Problem]:
    """LR611 if the stock image processor is written. The tower's tensors don't show how its
    pictures were normalised.
    """
    if rules is None or rules.class_ is None:
        return
    if target.tower.facts["model_type"] in IMAGE_PROCESSORS:
        stock = _changed(stock_image_processor(target.tower), target.image_processor)
        said = ", ".join(
            f"{key} {stock[key]}" for key in ("image_mean", "image_std", "size") if key in stock
        )
        yield Problem(
            "LR611",
            f"no source has a {PREPROCESSOR}, so the file of stock towers of this kind "
            f"({target.tower.facts['model_type']}) is written, with the tower's image size: "
            f"{said}. Nothing shows whether this tower was trained with these values.",
            f"If not, put the tower's {PREPROCESSOR} beside its weights and convert again.",
        )


def image_processor_problems(folder: Path | None, tower: Tower) -> list[Problem]:
    """LR604 if the given image processor makes images of another size than the tower's, and so
    another number of image tokens; LR113 for an invalid size.
    """
    if folder is None:
        return []
    content = read_beside(folder, PREPROCESSOR)
    for key in ("size", "crop_size"):
        sides = content[key].values() if isinstance(content.get(key), dict) else [content.get(key)]
        if any(isinstance(side, (int, float)) and not 0 < side <= _LARGEST_SIDE for side in sides):
            return [
                Problem(
                    "LR113",
                    f"{folder / PREPROCESSOR}: {key} is {content[key]!r}; 1 to {_LARGEST_SIDE} px "
                    "are allowed.",
                    _REPLACE,
                )
            ]
    sides = content.get("crop_size") or content.get("size")
    size = sides.get("height") or sides.get("shortest_edge") if isinstance(sides, dict) else sides
    if size is None or size == tower.facts.get("image_size", size):
        return []
    if not isinstance(size, int):
        return [Problem("LR113", f"{folder / PREPROCESSOR}: the image size is {size!r}.", _REPLACE)]
    return [
        Problem(
            "LR604",
            f"images of {size} px make {(size // int(tower.facts['patch_size'])) ** 2} tokens "
            f"({folder / PREPROCESSOR}), but the tower has {tower.facts['image_tokens']} "
            f"({tower.facts['image_size']} px).",
            "Give the tower of the checkpoint's training, with its preprocessor_config.json.",
        )
    ]


def write_pixel_processors(
    folder: Path | None, target: TargetConfig, rules: Processor, output: Path
) -> None:
    """Write `preprocessor_config.json`, and `video_preprocessor_config.json` if the rule file has a
    video processor.

    Sizes, means and steps come from the source's image processor, in the current form, or from the
    stock one. The class and the other values come from the rule file.

    Raises:
        RemapError: LR113 if transformers can't open the source's file, LR605 if trying the
            processor would take too much time and memory.
    """
    images = _opened(folder) if folder is not None else stock_image_processor(target.tower)
    if lacking := {*_NEEDED} - {*images, *target.image_processor}:
        raise refuse(
            "LR605",
            f"no source has a {PREPROCESSOR}, and the rule file doesn't say {sorted(lacking)} of "
            f"the pictures of a {target.tower.facts['model_type']}.",
            f"Put the tower's {PREPROCESSOR} beside its weights, or complete "
            "`processor.image_processor.config` in the rule file.",
        )
    images.pop("auto_map", None)  # it names code that isn't in the folder
    images[_CLASS] = rules.class_
    made = _changed(images, target.image_processor)
    _check_bounds(
        {**target.processor, **made}, target.processor.get("patch_size", made.get("patch_size"))
    )
    write_json(output / PREPROCESSOR, made)
    if target.video_processor:  # up to 4.51 the file above is for videos, too
        write_json(
            output / VIDEO_PREPROCESSOR,
            _changed({**images, "image_processor_type": None}, target.video_processor),
        )


def _check_bounds(config: Mapping[str, Any], patch_size: Any) -> None:
    """LR605 for sizes and counts that no picture and no prompt of this family has."""
    sides = [(key, side) for key in _SIDES for side in _numbers(config.get(key))]
    numbers = [(key, number) for key in config for number in _numbers(config[key])]
    beyond = {key: number for key, number in numbers if abs(number) > _LARGEST_NUMBER}
    beyond |= {key: side for key, side in sides if side > _LARGEST_SIDE}
    largest = max((side for _, side in sides), default=1)
    if patch_size is not None and not (
        type(patch_size) is int and patch_size * _MOST_PATCHES >= largest > 0
    ):
        beyond["patch_size"] = patch_size
    for key, number in beyond.items():
        raise refuse(
            "LR605",
            f"the processor's {key} would be {number!r}; pictures or prompts that large aren't "
            "tried.",
            "See `processor` of the rule file and the source's preprocessor_config.json.",
        )


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(part)


def _changed(processor: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """A processor's config with other values. None removes a key; without a class name,
    transformers chooses the class.
    """
    left_out = {
        key for key in (*by, "image_processor_type") if by.get(key, processor.get(key)) is None
    }
    return {key: value for key, value in {**processor, **by}.items() if key not in left_out}


def _opened(folder: Path) -> dict[str, Any]:
    """The source's image processor. Opening it brings files of any age (`size: 336`,
    `feature_extractor_type`) into one form.
    """
    from transformers import AutoImageProcessor

    try:
        return dict(AutoImageProcessor.from_pretrained(folder, **AS_DATA).to_dict())
    except Exception as error:  # whatever its code raises: the file is the user's
        raise refuse(
            "LR113",
            f"transformers can't open {folder / PREPROCESSOR}: {one_line(error)}.",
            _REPLACE,
        ) from error


def padding_notes(output: Path) -> list[Problem]:
    """LR610 if the image processor doesn't pad a wide white picture to a square with the mean
    colour.
    """
    from PIL import Image
    from transformers import AutoImageProcessor

    try:
        opened = AutoImageProcessor.from_pretrained(output, **AS_DATA)
        made = opened(images=Image.new("RGB", (64, 16), "white"), return_tensors="np")
        pixels = next(iter(made.values()))[0]
        top = abs(pixels[..., 0, pixels.shape[-1] // 2]).max()
    except Exception:  # `check_processor` reports it
        return []
    note = Problem(
        "LR610",
        "the config says image_aspect_ratio: pad, but the folder's image processor doesn't pad "
        "pictures to a square.",
        "If the class has an image processor that pads, let the rule file extend parts/pad.yaml; "
        "otherwise, pad pictures beforehand.",
    )
    return [] if top < _MEAN_COLOUR else [note]


def write_processor(
    output: Path, processor_class: str, target: TargetConfig, tokens: Sequence[PlacedToken]
) -> None:
    """Write `processor_config.json` without the nested image processor of 5.x, and the chat
    template in both forms.
    """
    named = {
        f"{token.role}_token": token.text
        for token in tokens
        if token.role in ("image", "video") and token.attribute is None
    }
    write_json(output / PROCESSOR, {**target.processor, **named, _CLASS: processor_class})
    if target.chat_template is not None:
        write_json(output / "chat_template.json", {"chat_template": target.chat_template.text})
        (output / "chat_template.jinja").write_text(target.chat_template.text, encoding="utf-8")


def check_processor(
    output: Path, rules: Processor, target: TargetConfig, tokens: Sequence[PlacedToken], prompt: str
) -> None:
    """Open the written processor as a user would, and give it one picture and one sentence.

    Args:
        prompt: the chat template's prompt for a picture and a question.

    Raises:
        RemapError: LR605 without a chat template, or if the processor fails, or doesn't open as the
            rule file's class; LR604 for a wrong number of image tokens.
    """
    from PIL import Image

    if target.chat_template is None:
        raise refuse(
            "LR605",
            "the rule file has no chat template, so the processor can't make a prompt.",
            "Add the part with the chat template of the training to the rule file's `extends` "
            f"({', '.join(shipped_chat_parts())}), or write `processor: {{chat_template: …}}` "
            "there.",
        )
    image = next((token for token in tokens if token.role == "image"), None)
    try:
        processor = _processor(output, rules)
        if type(processor).__name__ != rules.class_:
            raise ValueError(f"AutoProcessor opens the folder as a {type(processor).__name__}")
        if processor.chat_template != target.chat_template.text:
            raise ValueError("AutoProcessor opens the folder with another chat template")
        if image is None:
            return
        size, wanted = _expected(target)
        with panics_as_errors():
            ids = processor(images=Image.new("RGB", size), text=prompt, return_tensors="pt")[
                "input_ids"
            ][0].tolist()
    except Exception as error:  # whatever the processor's code raises
        raise refuse(
            "LR605",
            f"the {rules.class_} that was made doesn't work: {one_line(error)}.",
            _class_part(target)
            + "See `processor` of the rule file and the source's preprocessor_config.json and "
            "tokenizer files.",
        ) from error
    if wanted is not None and ids.count(image.id) != wanted:
        raise refuse(
            "LR604",
            f"the processor made {ids.count(image.id)} image tokens for a picture of {size[0]} × "
            f"{size[1]} px; the tower makes {wanted}.",
            "See `processor.config` and `chat_template` of the rule file.",
        )


def _class_part(target: TargetConfig) -> str:
    """The advice to extend the shipped part for the processors of the target's class, if any."""
    part = shipped_class_part(str(target.config.get("model_type")))
    return (
        f"Let the rule file extend {part}, which has what this class's processors need, unless it "
        "already does. "
        if part
        else ""
    )


def _processor(output: Path, rules: Processor) -> Any:
    """The written processor, opened. Without torchvision, it is opened without its video processor,
    which no version since 4.52 can open then.
    """
    import transformers

    if rules.video_processor is None or has_torchvision():
        return transformers.AutoProcessor.from_pretrained(output, **AS_DATA)
    wanted: Any = getattr(transformers, str(rules.class_))

    def check(self: Any, name: str, argument: Any) -> Any:
        return (
            None
            if name == "video_processor"
            else wanted.check_argument_for_proper_class(self, name, argument)
        )

    without = type(wanted.__name__, (wanted,), {"check_argument_for_proper_class": check})
    template = output / "chat_template.jinja"
    return without(
        image_processor=transformers.AutoImageProcessor.from_pretrained(output, **AS_DATA),
        tokenizer=transformers.AutoTokenizer.from_pretrained(output, **AS_DATA),
        video_processor=None,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
        **{
            key: value
            for key, value in json.loads((output / PROCESSOR).read_text()).items()
            if key != _CLASS
        },
    )


def _expected(target: TargetConfig) -> tuple[tuple[int, int], int | None]:
    """A picture's size, [width, height] in pixels, and the number of image tokens that the model
    makes of it.

    A tiled picture in one of the grid's sizes needs no padding: its tokens are those of the whole
    picture in one tile, then those of all tiles, with one more token at the end of each row of
    patches (`pack_image_features` of transformers' LLaVA-NeXT).
    """
    grid = target.config.get("image_grid_pinpoints")
    if not grid:
        # A square has one tile for processors that choose a grid by the shape of a picture.
        size = (64, 64) if "max_patches" in target.image_processor else (64, 48)
        return size, target.config.get("image_seq_length")
    side, tokens = int(target.tower.facts["image_size"]), int(target.tower.facts["image_tokens"])
    height, width = grid[0]
    rows, columns, patches = height // side, width // side, isqrt(tokens)
    return (width, height), tokens + rows * patches * (columns * patches + 1)


def video_processor_notes(rules: Processor | None) -> Iterator[Problem]:
    """LR608 if a video processor is written that can't be opened here."""
    if rules is not None and rules.video_processor is not None and not has_torchvision():
        yield Problem(
            "LR608",
            f"transformers opens the {rules.video_processor.class_} only with torchvision, which "
            "isn't installed: pictures were tried, videos weren't.",
            "To open the folder with AutoProcessor (transformers 4.52 and later), install "
            "torchvision.",
        )


def has_torchvision() -> bool:
    """Whether transformers can open a video processor."""
    return importlib.util.find_spec("torchvision") is not None
