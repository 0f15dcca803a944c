"""All files of the output beside the weights. They are made first, in a scratch folder: if a file
can't be made, no weight is written.

`make_files` makes them from the research code's files. `keep_files` copies the files of a
transformers model, in the forms of old and of new versions: 5.x puts the image processor into
`processor_config.json` and the chat template into `chat_template.jinja`, and writes tokenizer files
that 4.x can't read; 4.x has `preprocessor_config.json` and `chat_template.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from llava_remap.checkpoint import BESIDE, has_file, read_file, read_text
from llava_remap.core.cache import cached
from llava_remap.core.problem import Problem
from llava_remap.folder.chat_template import Tried, check_special_tokens, try_template
from llava_remap.folder.processor import (
    PREPROCESSOR,
    PROCESSOR,
    VIDEO_PREPROCESSOR,
    check_processor,
    has_torchvision,
    padding_notes,
    write_pixel_processors,
    write_processor,
)
from llava_remap.folder.scratch import json_bytes, scratch_folder, write_json
from llava_remap.folder.tokenizer import write_tokenizer
from llava_remap.rulefile import RuleFile
from llava_remap.target_model import (
    PlacedToken,
    TargetConfig,
    Vocabulary,
    has_tekken,
    lacks_library,
    read_beside,
    read_tekken,
)

#: Keys of the source's generation config that aren't written: they say who wrote the config, and
#: for which code.
_NOT_KEPT = ("_from_model_config", "transformers_version", "auto_map")
#: The entry of the cache that holds the notes.
_NOTES = "notes"
_NOTED = TypeAdapter(list[tuple[str, str, str]])
#: Names of all files that can be made.
_MADE = frozenset(name for names in BESIDE.values() for name in names)
#: The parts of 5.x's `processor_config.json`, and the files that have them in both generations.
_NESTED = {"image_processor": PREPROCESSOR, "video_processor": VIDEO_PREPROCESSOR}
#: Keys that only sampling reads. Vicuna's generation config has them without `do_sample`, so they
#: have no effect. But newer versions warn of them, and 4.57's `save_pretrained` refuses them.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, slots=True)
class Parts:
    """The inputs of a folder, beside the weights.

    Attributes:
        rules: the rule file.
        target: config of model and processor.
        tokens: the rule file's tokens with their ids.
        vocabulary: the source's tokenizer files, or None where no source has any.
        image_processor: the folder with the source's image processor, or None for the stock one.
        generation: the source's generation config; may be empty.
        pads: whether the research code pads pictures to a square, by the source's config.
    """

    rules: RuleFile
    target: TargetConfig
    tokens: Sequence[PlacedToken]
    vocabulary: Vocabulary | None
    image_processor: Path | None
    generation: Mapping[str, Any]
    pads: bool = False


def make_files(parts: Parts) -> tuple[dict[str, bytes], list[Problem]]:
    """Config and generation config, and, if there is a tokenizer, tokenizer, processor and chat
    template, by file name; and notes.

    The files are made and tried in a scratch folder, or come from the cache if they were made from
    equal parts before.

    Raises:
        RemapError: LR113 for files of a source that can't be opened, LR403 for a token id, LR412
            for a tokenizer that can't be reproduced, LR413 for a chat template that doesn't fit the
            tokenizer, LR604 or LR605 for the processor.
    """
    processor = parts.rules.text.processor
    facts = {
        "config": parts.target.config,
        "processor": processor.model_dump(mode="json") if processor else None,
        "made with": [
            parts.target.processor,
            parts.target.image_processor,
            parts.target.video_processor,
        ],
        "chat_template": parts.target.chat_template.text if parts.target.chat_template else None,
        "tower": parts.target.tower.facts,
        "videos": has_torchvision(),
        "tokens": [asdict(token) for token in parts.tokens],
        "generation": parts.generation,
        "pads": parts.pads,
        "tokenizer": _digests(parts.vocabulary.folder, BESIDE["tokenizer"])
        if parts.vocabulary
        else None,
        # Where the image processor's file names no class, transformers reads the other files.
        "images": _digests(parts.image_processor, (*BESIDE["processor"], "config.json"))
        if parts.image_processor
        else None,
    }

    def make() -> dict[str, bytes]:
        with scratch_folder() as scratch:
            notes = _make(parts, scratch)
            made = {path.name: path.read_bytes() for path in sorted(scratch.iterdir())}
        return {
            **made,
            _NOTES: json.dumps([[note.code, note.cause, note.fix] for note in notes]).encode(),
        }

    def read(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[Problem]]:
        made = {name: content for name, content in files.items() if name != _NOTES}
        if not {"config.json"} <= made.keys() <= _MADE or made["config.json"] != json_bytes(
            parts.target.config
        ):
            raise ValueError("no folder of this config")
        return made, [Problem(*note) for note in _NOTED.validate_json(files[_NOTES], strict=True)]

    return cached("folder", facts, make, read)


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {
        name: hashlib.sha256(read_file(folder / name)).hexdigest()
        for name in names
        if has_file(folder / name)
    }


def _make(parts: Parts, scratch: Path) -> list[Problem]:
    """Make the files in a scratch folder.

    Returns:
        Notes: LR609 if generation now stops at one more token, and the notes of the processor and
        the tokenizer.
    """
    notes: list[Problem] = []
    config, vocabulary, template = parts.target.config, parts.vocabulary, parts.target.chat_template
    write_json(scratch / "config.json", config)
    generation = generation_config(parts.generation, config)
    processor = parts.rules.text.processor
    tried = Tried((), None, "")
    if vocabulary is not None and template is not None:
        place = _place(parts.rules, template.name)
        tried = try_template(
            template.name, template.text, parts.tokens, vocabulary.special, place=place
        )
        ids = {**vocabulary.ids, **{token.text: token.id for token in parts.tokens}}
        check_special_tokens(
            template.name,
            tried.prompts,
            ids,
            processor.plain_text if processor else (),
            place=place,
        )
        stopping = stopping_at(generation, ids.get(tried.turn_end or ""))
        if stopping != generation:
            notes.append(
                Problem(
                    "LR609",
                    f"a turn ends with `{tried.turn_end}`, and the generation config stopped at "
                    f"{generation.get('eos_token_id')!r} only.",
                    f"The written generation config stops at {stopping['eos_token_id']}.",
                )
            )
        generation = stopping
    write_json(scratch / "generation_config.json", generation)
    if processor is not None and processor.class_ is not None:
        write_pixel_processors(parts.image_processor, parts.target, processor, scratch)
        if parts.pads:
            notes += padding_notes(scratch)
        if vocabulary is not None:
            notes += write_tokenizer(
                vocabulary,
                config["text_config"]["model_type"],
                parts.tokens,
                scratch,
                processor.class_,
                tried.prompts,
            )
            write_processor(scratch, processor.class_, parts.target, parts.tokens)
            check_processor(scratch, processor, parts.target, parts.tokens, tried.question)
    return notes


def _place(rules: RuleFile, template: str) -> str:
    """The place of a chat template, or the name of its first file."""
    made = rules.text.processor
    path = (
        ("processor", "chat_template")
        if made is None or template not in made.chat_templates
        else ("processor", "chat_templates", template, "text")
    )
    return str(rules.tree.locate(path).mark)


def stopping_at(generation: Mapping[str, Any], end: int | None) -> dict[str, Any]:
    """A generation config that stops at the id that ends a turn, as the research code does."""
    said = generation.get("eos_token_id")
    ends = said if isinstance(said, list) else [] if said is None else [said]
    if end is None or end in ends:
        return dict(generation)
    return {**generation, "eos_token_id": [*ends, end] if ends else end}


def read_generation_config(folders: Sequence[Path]) -> dict[str, Any]:
    """The first generation config in these folders; empty without one.

    Raises:
        RemapError: LR113 where it isn't a JSON object, or has a value of a wrong kind.
    """
    name = "generation_config.json"
    return next((read_beside(folder, name) for folder in folders if has_file(folder / name)), {})


def generation_config(source: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The source's generation config without keys that don't apply here, and with the ids of
    special tokens from the text model's config.
    """
    text = config["text_config"]
    ids = {key: text.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    not_kept = _NOT_KEPT if source.get("do_sample") else (*_NOT_KEPT, *_SAMPLING)
    return {
        **{key: value for key, value in ids.items() if value is not None},
        **{key: value for key, value in source.items() if key not in not_kept},
        "pad_token_id": ids["pad_token_id"],
    }


def keep_files(
    folder: Path | None,
    target: TargetConfig,
    vocabulary: Vocabulary | None,
    generation: Mapping[str, Any],
) -> dict[str, bytes]:
    """Config, generation config, and the source's own tokenizer, processor and chat template, by
    file name.

    Args:
        folder: the source's folder; None for a manifest, which has none of these files.
        target: the config that is written, and the processor that the rule file makes of a config
            of another form. It is written if the folder has none.
        vocabulary: the source's tokenizer files, or None.
        generation: the source's generation config; may be empty.

    Raises:
        RemapError: LR113 for files of the source that can't be read.
    """
    config = target.config
    with scratch_folder() as scratch:
        write_json(scratch / "config.json", config)
        write_json(scratch / "generation_config.json", generation_config(generation, config))
        if folder is not None:
            processor = read_beside(folder, PROCESSOR)
            if target.image_processor and not _has_processor(folder):
                write_json(scratch / PREPROCESSOR, target.image_processor)
                processor = {**target.processor}
            class_name = _processor_class(folder, processor)
            named = {"processor_class": class_name} if class_name else {}
            for key, file in _NESTED.items():
                if content := read_beside(folder, file) or processor.get(key):
                    write_json(scratch / file, _for_both(content, named))
            if processor:
                dropped = (*_NESTED, "auto_map")
                own = {key: value for key, value in processor.items() if key not in dropped}
                write_json(scratch / PROCESSOR, {**own, **named})
            if vocabulary is not None:
                write_tokenizer(
                    vocabulary, config["text_config"]["model_type"], (), scratch, class_name
                )
            if (template := _chat_template(folder, processor)) is not None:
                write_json(scratch / "chat_template.json", {"chat_template": template})
                (scratch / "chat_template.jinja").write_text(template, encoding="utf-8")
        return {path.name: path.read_bytes() for path in sorted(scratch.iterdir())}


def _has_processor(folder: Path) -> bool:
    return any(has_file(folder / file) for file in (PROCESSOR, PREPROCESSOR))


def kept_notes(
    folder: Path | None, vocabulary: Vocabulary | None, target: TargetConfig
) -> list[Problem]:
    """LR408 for a source without the parts of a processor, unless the rule file makes them of a
    config of another form.
    """
    absent = ["the tokenizer"] if vocabulary is None else []
    if not target.image_processor and (folder is None or not _has_processor(folder)):
        absent.append("the image processor")
    if folder is not None and vocabulary is None and lacks_library(folder):
        return [
            Problem(
                "LR408",
                "the source's tokenizer is Mistral's tekken.json, which mistral-common reads. "
                "mistral-common isn't installed, so the folder has no tokenizer: the model opens, "
                "AutoProcessor doesn't.",
                "Install it (pip install mistral-common), or put a tokenizer.json beside the "
                "source's weights, and convert again.",
                lacks=True,
            )
        ]
    note = Problem(
        "LR408",
        f"the source has no files of {' and of '.join(absent)}, so the folder has none: the "
        "model opens, AutoProcessor doesn't.",
        "To add these files, put them beside the source's weights and convert again.",
        lacks=True,
    )
    return [note] if absent else []


def _processor_class(folder: Path, processor: Mapping[str, Any]) -> str | None:
    beside = (read_beside(folder, name) for name in (PREPROCESSOR, "tokenizer_config.json"))
    contents = (processor, *beside)
    return next((str(named) for c in contents if (named := c.get("processor_class"))), None)


def _for_both(content: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """An image or video processor's config, with the class name that both generations know."""
    both = {key: value for key, value in {**content, **named}.items() if key != "auto_map"}
    if isinstance(kind := content.get("image_processor_type"), str):
        # 5.x appends these to the name, one for each implementation.
        both["image_processor_type"] = kind.removesuffix("Fast").removesuffix("Pil")
    return both


def _chat_template(folder: Path, processor: Mapping[str, Any]) -> str | None:
    """The chat template, from the file of any version of transformers; the processor's files come
    before the tokenizer's.
    """
    if has_file(path := folder / "chat_template.jinja"):
        return read_text(path)
    contents = (
        read_beside(folder, "chat_template.json"),
        processor,
        read_beside(folder, "tokenizer_config.json"),
    )
    found = next((t for c in contents if isinstance(t := c.get("chat_template"), str)), None)
    if found is None and has_tekken(folder) and not has_file(folder / "tokenizer.json"):
        return read_tekken(folder).chat_template
    return found
