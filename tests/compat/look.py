"""Open converted folders as a user would, with whatever transformers is on the path, and write down
all that came of it.

`python look.py OUT FOLDER…` writes OUT.json and OUT.npz. It is run by several versions, so it keeps
to what all of them have.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin

IMAGE = {"type": "image"}
#: Long enough that a wrong rope theta shows in the logits of small random weights.
QUESTION = (
    "What is in the picture? Name 3 things, and say which of them is nearest: the cat, the "
    "dog or the house on the hill."
)
CONVERSATIONS = {
    "picture": [{"role": "user", "content": [IMAGE, {"type": "text", "text": QUESTION}]}],
    "words": [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": [{"type": "text", "text": "The cat."}]},
        {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
    ],
}
#: What tokenizers have disagreed on: spaces, line ends, marks before and after special tokens,
#: letters that are no ASCII.
SENTENCES = (
    "Two  spaces, 1234 and it's\n\nso.",
    " a cat",
    "ein Bär, 猫",
    "a <image> b<image>\nc",
    "end.</s>USER: next",
    "",
)


class Heard(logging.Handler):
    """What transformers warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def picture(side: int) -> Image.Image:
    """Of a size that is padded evenly when it is tiled: up to 4.51, an odd pixel is lost, and
    all tiles behind it are shifted.

    Args:
        side: of the pictures that the tower takes, 28 or 196 pixels.
    """
    size = (side * 11 // 7, side * 2, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


def look(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one folder is to this version: plain values, and arrays."""
    arrays: dict[str, Any] = {}
    written = json.loads((folder / "config.json").read_text())
    seen = picture(written["vision_config"]["image_size"])
    dtype = {
        "dtype" if int(transformers.__version__.split(".")[0]) > 4 else "torch_dtype": torch.float32
    }
    model_class = getattr(transformers, written["architectures"][0])
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **dtype)
    # 4.46 leaves tensors of a checkpoint with two dtypes in theirs, if that of the first is the one
    # that is asked for.
    model = model.float().eval()
    said: dict[str, Any] = {
        "left_over": {kind: sorted(map(str, names)) for kind, names in info.items() if names},
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "generation": {
            key: getattr(model.generation_config, key)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        },
    }
    with (
        tempfile.TemporaryDirectory() as scratch
    ):  # as everybody's fine-tuning does; some versions refuse here, not before
        model.generation_config.save_pretrained(scratch)
    inputs: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        processor, said["closed"] = open_processor(folder)
        said |= words(processor, model)
        for name, conversation in CONVERSATIONS.items():
            prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
            text, images = prompt, {}
            if name == "picture" and processor.image_processor is not None:
                images = {"images": seen}
            elif name == "picture":  # as the processor does it
                text = prompt.replace("<image>", "<image>" * written["image_seq_length"])
            # Up to 4.51 Video-LLaVA's processor fails without pictures and videos.
            asked = (
                processor.tokenizer
                if type(processor).__name__ == "VideoLlavaProcessor" and not images
                else processor
            )
            inputs[name] = asked(text=text, return_tensors="pt", **images)
            said[name] = {"prompt": prompt, "input_ids": inputs[name]["input_ids"].tolist()}
    else:  # no tokenizer: ids that are no words
        ids = torch.arange(3, 103)[None]
        tokens = torch.full((1, model.config.image_seq_length), model.config.image_token_index)
        opened = AutoImageProcessor.from_pretrained(folder)
        said["image_processor"] = name_of(opened)
        pixels = opened(seen, return_tensors="pt")["pixel_values"]
        inputs = {
            "words": {"input_ids": ids},
            "picture": {
                "input_ids": torch.cat([ids[:, :20], tokens, ids[:, 20:]], 1),
                "pixel_values": pixels,
            },
        }
    inputs = {"made_up": with_made_up_pixels(written, inputs["picture"]), **inputs}
    if pixels := pixels_in(inputs["picture"]):
        arrays["pixel_values"] = inputs["picture"][pixels].numpy()
    else:
        del inputs["picture"]
    if "video_token_index" in written:
        inputs["video"] = video(written, inputs["words"]["input_ids"])
    # 4.46 takes a prompt without a picture for one whose image tokens were not expanded, and fails:
    # its language model is asked.
    inner = getattr(model, "language_model", model)
    classic = inner if hasattr(inner, "lm_head") else model
    with torch.no_grad():
        for name, given in inputs.items():
            model_or_text = classic if name == "words" else model
            given = {**given, "attention_mask": torch.ones_like(given["input_ids"])}
            arrays[f"{name}_logits"] = model_or_text(**given).logits.numpy()
            if (
                name == "made_up"
            ):  # the longest text last: but for 5.0.0, dynamic scaling keeps to it
                continue
            made = model_or_text.generate(
                **given, max_new_tokens=6, min_new_tokens=6, do_sample=False
            )
            said[f"{name}_generated"] = made[0, given["input_ids"].shape[1] :].tolist()
    return said, arrays


def name_of(image_processor: Any) -> str:
    """Its class, whatever library does the work."""
    return type(image_processor).__name__.removesuffix("Fast").removesuffix("Pil")


def open_processor(folder: Path) -> tuple[Any, str | None]:
    """The folder's processor, and why and in which module AutoProcessor didn't open it; its
    parts are opened one by one then.
    """
    try:
        return AutoProcessor.from_pretrained(folder), None
    except Exception as error:
        module = Path(traceback.extract_tb(error.__traceback__)[-1].filename).stem
        return open_parts(
            folder
        ), f"{type(error).__name__}: {' '.join(str(error).split())} (in {module})"


def open_parts(folder: Path) -> Any:
    """The folder's processor without one for videos, and without one for pictures if this
    version doesn't know its class.
    """
    said = json.loads((folder / "processor_config.json").read_text())
    known = getattr(transformers, said.pop("processor_class"))
    try:
        image_processor = AutoImageProcessor.from_pretrained(folder)
    except ValueError:
        image_processor = None
    without = (
        {"video_processor": None} if (folder / "video_preprocessor_config.json").is_file() else {}
    )

    def plain(self: Any, *parts: Any, **more: Any) -> None:
        """Without the check of what the parts are, which no version lets one leave out."""
        names = self.get_attributes() if hasattr(self, "get_attributes") else self.attributes
        for name, part in [*zip(names, parts, strict=False), *more.items()]:
            setattr(self, name, part)

    with patch.object(ProcessorMixin, "__init__", plain):
        return known(
            image_processor=image_processor,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            chat_template=(folder / "chat_template.jinja").read_text(),
            **without,
            **said,
        )


def pixels_in(inputs: Any) -> str | None:
    """Under which name a picture's pixels are among inputs, if they are."""
    return next((key for key in inputs if key.startswith("pixel_values")), None)


def with_made_up_pixels(config: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """The same inputs with made-up pixel values, the same for every version, so that the model
    alone is asked.
    """
    name, side = pixels_in(inputs), config["vision_config"]["image_size"]
    shape = inputs[name].shape if name else (1, 3, side, side)
    made = np.random.default_rng(2).standard_normal(tuple(shape), dtype=np.float32)
    return {**inputs, name or "pixel_values": torch.from_numpy(made)}


def video(config: dict[str, Any], ids: Any) -> dict[str, Any]:
    """Eight frames of made-up pixel values between words, with as many tokens as the class makes
    of them.
    """
    side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    frames, patches = 8, side // patch
    count = {
        "llava_next_video": frames
        * (patches // config.get("spatial_pool_stride", 1)) ** 2,  # pooled
        "llava_onevision": frames * ((patches + 1) // 2) ** 2
        + 1,  # pooled, and one token at the end
        "video_llava": frames * (patches**2 + 1),  # with the class token
    }[config["model_type"]]
    pixels = np.random.default_rng(1).standard_normal((1, frames, 3, side, side), dtype=np.float32)
    tokens = torch.full((1, count), config["video_token_index"])
    return {
        "input_ids": torch.cat([ids[:, :20], tokens, ids[:, 20:]], 1),
        "pixel_values_videos": torch.from_numpy(pixels),
    }


def words(processor: Any, model: Any) -> dict[str, Any]:
    """What the folder's tokenizer and chat template say."""
    tokenizer = processor.tokenizer
    ids = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    both = tokenizer(list(SENTENCES[:2]), padding=True)
    return {
        "processor": type(processor).__name__,
        "image_processor": name_of(processor.image_processor),
        "chat_template": processor.chat_template,
        "special": {
            str(token): tokenizer.convert_tokens_to_ids(str(token))
            for token in sorted(tokenizer.all_special_tokens)
        },
        "roles": {
            role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk")
        },
        "image_token": [
            processor.image_token,
            tokenizer.convert_tokens_to_ids(processor.image_token),
        ],
        "image_token_of_the_model": model.config.image_token_index,
        "vocabulary": len(tokenizer),
        "sentences": ids,
        "padded": [list(both["input_ids"]), list(both["attention_mask"])],
        "decoded": [tokenizer.decode(i) for i in ids],
        "without_special": [tokenizer.decode(i, skip_special_tokens=True) for i in ids],
    }


def main(out: str, *folders: str) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    logger = transformers.utils.logging.get_logger("transformers")
    transformers.utils.logging.disable_default_handler()
    said: dict[str, Any] = {
        "transformers": transformers.__version__,
        "has_torchvision": bool(transformers.utils.is_torchvision_available()),
    }
    arrays: dict[str, Any] = {}
    for folder in map(Path, folders):
        heard = Heard()
        logger.addHandler(heard)
        with warnings.catch_warnings(record=True) as caught:
            try:
                said[folder.name], found = look(folder)
                arrays |= {f"{folder.name}/{name}": array for name, array in found.items()}
            except Exception as error:  # the other folders are still worth a look
                said[folder.name] = {"error": f"{type(error).__name__}: {error}"}
        logger.removeHandler(heard)
        said[folder.name]["warned"] = heard.said + [
            str(w.message) for w in caught if "transformers" in w.filename
        ]
    np.savez(f"{out}.npz", **arrays)
    Path(f"{out}.json").write_text(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
