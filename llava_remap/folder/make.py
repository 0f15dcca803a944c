"""Everything in the output folder beside the weights. It is made first, elsewhere: if it can't
be, no weight is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from llava_remap.checkpoint import BESIDE, has_file, read_file
from llava_remap.core.cache import cached
from llava_remap.core.problem import Problem
from llava_remap.folder.chat_template import Tried, check_special_tokens, try_template
from llava_remap.folder.json_file import json_bytes, write_json
from llava_remap.folder.processor import (
    check_processor,
    has_torchvision,
    padding_notes,
    write_pixel_processors,
    write_processor,
)
from llava_remap.folder.scratch import scratch_folder
from llava_remap.folder.tokenizer import write_tokenizer
from llava_remap.rulefile import RuleFile
from llava_remap.target_model import PlacedToken, TargetConfig, Vocabulary, read_beside

#: Of the source's generation config: who wrote it, and whose code it is for.
_NOT_KEPT = ("_from_model_config", "transformers_version", "auto_map")
#: The entry of the cache that holds what is worth telling of the others.
_NOTES = "notes"
_NOTED = TypeAdapter(list[tuple[str, str, str]])
#: All that can be made.
_MADE = frozenset(name for names in BESIDE.values() for name in names)
#: What only sampling reads. Vicuna's generation config has them without `do_sample`: generation is
#: greedy and they are of no effect, but newer versions warn of them, and 4.57's `save_pretrained`
#: refuses.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder is made from, beside the weights.

    Attributes:
        rules: the rule file.
        target: config of model and processor.
        tokens: the rule file's tokens with their ids.
        vocabulary: the source's tokenizer files, or None where no source has any.
        image_processor: the folder with the source's image processor, or None for the stock one.
        generation: the source's generation config; may be empty.
        pads: whether the research code fills pictures up to a square, as the source's config says.
    """

    rules: RuleFile
    target: TargetConfig
    tokens: Sequence[PlacedToken]
    vocabulary: Vocabulary | None
    image_processor: Path | None
    generation: Mapping[str, Any]
    pads: bool = False


def make_files(parts: Parts) -> tuple[dict[str, bytes], list[Problem]]:
    """Config, generation config and, where there is a tokenizer, tokenizer, processor and chat
    template, by file name; and notes.

    They are made and tried in a scratch folder, or come from the cache where they were made from
    the same before.

    Raises:
        RemapError: LR113 for files of a source that can't be opened, LR403 for a token id, LR412
            for a tokenizer that can't be reproduced, LR413 for a chat template that doesn't fit it,
            LR604 or LR605 for the processor.
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
        # Where the image processor's file doesn't name its class, transformers looks into the
        # others.
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
    found = ((name, folder / name) for name in names)
    return {
        name: hashlib.sha256(read_file(path)).hexdigest() for name, path in found if has_file(path)
    }


def _make(parts: Parts, scratch: Path) -> list[Problem]:
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
        plain = processor.plain_text if processor else ()
        check_special_tokens(template.name, tried.prompts, ids, plain, place=place)
        stopping = stopping_at(generation, ids.get(tried.turn_end or ""))
        if stopping != generation:
            stopped = generation.get("eos_token_id")
            notes.append(
                Problem(
                    "LR609",
                    f"a turn ends with `{tried.turn_end}`, and the generation config stopped at "
                    f"{stopped!r} alone.",
                    f"It stops at {stopping['eos_token_id']} now.",
                )
            )
        generation = stopping
    write_json(scratch / "generation_config.json", generation)
    if processor is None or processor.class_ is None:
        return notes
    write_pixel_processors(parts.image_processor, parts.target, processor, scratch)
    if parts.pads:
        notes += padding_notes(scratch)
    if vocabulary is None:
        return notes
    text_model = config["text_config"]["model_type"]
    notes += write_tokenizer(
        vocabulary, text_model, parts.tokens, scratch, processor.class_, tried.prompts
    )
    write_processor(scratch, processor.class_, parts.target, parts.tokens)
    check_processor(scratch, processor, parts.target, parts.tokens, tried.question)
    return notes


def _place(rules: RuleFile, template: str) -> str:
    """Where a chat template stands, or the name of its first file."""
    own = rules.text.processor is None or template not in rules.text.processor.chat_templates
    path = (
        ("processor", "chat_template") if own else ("processor", "chat_templates", template, "text")
    )
    return str(rules.tree.locate(path).mark)


def stopping_at(generation: Mapping[str, Any], end: int | None) -> dict[str, Any]:
    """A generation config in which generation stops at the id that ends a turn, as the research
    code does.
    """
    said = generation.get("eos_token_id")
    ends = said if isinstance(said, list) else [] if said is None else [said]
    if end is None or end in ends:
        return dict(generation)
    return {**generation, "eos_token_id": [*ends, end] if ends else end}


def read_generation_config(folders: Sequence[Path]) -> dict[str, Any]:
    """The first generation config in these folders; empty without one.

    Raises:
        RemapError: LR113 where it isn't a JSON object, or has a value of a kind that can't be.
    """
    name = "generation_config.json"
    for folder in folders:
        if has_file(folder / name):
            return read_beside(folder, name)
    return {}


def generation_config(source: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The source's generation config, without what is for others, with the ids of special tokens
    from the text model's config.
    """
    text = config["text_config"]
    ids = {
        key: text.get(key)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        if text.get(key) is not None
    }
    not_kept = _NOT_KEPT if source.get("do_sample") else (*_NOT_KEPT, *_SAMPLING)
    return {
        **ids,
        **{k: v for k, v in source.items() if k not in not_kept},
        "pad_token_id": text.get("pad_token_id"),
    }
