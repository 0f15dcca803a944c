"""The small files of what is a model of transformers already: the source's own, in the forms of old
and of new versions.

transformers 5.x puts the image processor into `processor_config.json`, the chat template into
`chat_template.jinja`, and writes tokenizer files that 4.x can't read; 4.x has
`preprocessor_config.json` and `chat_template.json`. What the source has in one form is written in
both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import has_file, read_text
from llava_remap.core.problem import Problem
from llava_remap.folder.json_file import write_json
from llava_remap.folder.make import generation_config
from llava_remap.folder.processor import PREPROCESSOR
from llava_remap.folder.scratch import scratch_folder
from llava_remap.folder.tokenizer import write_tokenizer
from llava_remap.target_model import Vocabulary, read_beside

PROCESSOR = "processor_config.json"
#: What 5.x puts into `processor_config.json`, and the files that have it in both generations.
_NESTED = {"image_processor": PREPROCESSOR, "video_processor": "video_preprocessor_config.json"}
#: What 5.x appends to the name of an image processor's class, for who computes it; 4.x knows the
#: name without.
_BACKENDS = ("Fast", "Pil")


def keep_files(
    folder: Path | None,
    config: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    generation: Mapping[str, Any],
) -> dict[str, bytes]:
    """Config, generation config, and of tokenizer, processor and chat template what the source has,
    by file name.

    Args:
        folder: the source's; None for a manifest, which has none of these files.
        config: the config that is written.
        vocabulary: the source's tokenizer files, or None.
        generation: the source's generation config; may be empty.

    Raises:
        RemapError: LR113 for files of the source that can't be read.
    """
    with scratch_folder() as scratch:
        write_json(scratch / "config.json", config)
        write_json(scratch / "generation_config.json", generation_config(generation, config))
        if folder is not None:
            processor = read_beside(folder, PROCESSOR)
            class_name = _processor_class(folder, processor)
            for key, file in _NESTED.items():
                if content := read_beside(folder, file) or processor.get(key) or {}:
                    write_json(scratch / file, _for_both(content, class_name))
            if processor:
                own = {
                    key: value
                    for key, value in processor.items()
                    if key not in (*_NESTED, "auto_map")
                }
                write_json(
                    scratch / PROCESSOR,
                    {**own, "processor_class": class_name} if class_name else own,
                )
            if vocabulary is not None:
                write_tokenizer(
                    vocabulary, config["text_config"]["model_type"], (), scratch, class_name
                )
            if (template := _chat_template(folder, processor)) is not None:
                write_json(scratch / "chat_template.json", {"chat_template": template})
                (scratch / "chat_template.jinja").write_text(template, encoding="utf-8")
        return {path.name: path.read_bytes() for path in sorted(scratch.iterdir())}


def kept_notes(folder: Path | None, vocabulary: Vocabulary | None) -> list[Problem]:
    """LR408 for a source without what a processor is made of; nothing is made up for it."""
    absent = ["the tokenizer"] if vocabulary is None else []
    if folder is None or not any(has_file(folder / file) for file in (PROCESSOR, PREPROCESSOR)):
        absent.append("the image processor")
    if not absent:
        return []
    return [
        Problem(
            "LR408",
            f"the source has no files of {' and of '.join(absent)}, so the folder has none: the "
            "model opens, AutoProcessor doesn't.",
            "To have them, put them beside the source's weights and convert again.",
            lacks=True,
        )
    ]


def _processor_class(folder: Path, processor: Mapping[str, Any]) -> str | None:
    said = (
        processor,
        read_beside(folder, PREPROCESSOR),
        read_beside(folder, "tokenizer_config.json"),
    )
    return next((str(found) for content in said if (found := content.get("processor_class"))), None)


def _for_both(content: Mapping[str, Any], class_name: str | None) -> dict[str, Any]:
    """An image or video processor's config, naming its class as both generations know it."""
    named = {"processor_class": class_name} if class_name else {}
    kind = content.get("image_processor_type")
    if isinstance(kind, str):
        for backend in _BACKENDS:
            kind = kind.removesuffix(backend)
        named["image_processor_type"] = kind
    return {key: value for key, value in {**content, **named}.items() if key != "auto_map"}


def _chat_template(folder: Path, processor: Mapping[str, Any]) -> str | None:
    """The chat template, wherever the version that saved it put it: the processor's before the
    tokenizer's.
    """
    if has_file(path := folder / "chat_template.jinja"):
        return read_text(path)
    said = (
        read_beside(folder, "chat_template.json"),
        processor,
        read_beside(folder, "tokenizer_config.json"),
    )
    return next(
        (found for content in said if isinstance(found := content.get("chat_template"), str)), None
    )
