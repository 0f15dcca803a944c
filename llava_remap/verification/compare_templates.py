"""Compares two chat templates: their texts, and the prompts that they write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, has_file, read_text, readable
from llava_remap.core.bounded import BeyondBoundsError, bounded
from llava_remap.folder.chat_template import conversations
from llava_remap.target_model import PlacedToken, read_vocabulary
from llava_remap.verification.compare_files import read_json
from llava_remap.verification.difference import Rendered, Template

#: The folder with further templates, one per file.
_FURTHER = "additional_chat_templates"
#: The files that may have the default template. If several have one, the last counts.
_FILES = ("tokenizer_config.json", "chat_template.json", "chat_template.jinja")
#: The parts of messages other than text.
_PARTS = (PlacedToken("<image>", "image", 0, False), PlacedToken("<video>", "video", 0, False))


def compare_templates(a: Checkpoint, b: Checkpoint) -> Iterator[Template]:
    """The chat templates that differ. Where a template is stored makes no difference.

    Raises:
        RemapError: LR100, LR102 or LR113 for a file that can't be read.
    """
    if a.folder is None or b.folder is None:
        return
    (have_a, stored_a), (have_b, stored_b) = _templates(a, a.folder), _templates(b, b.folder)
    for file in _FILES:  # a file without a template stands for the side's default template
        pair = [
            stored.get(file, have.get("default"))
            for stored, have in ((stored_a, have_a), (stored_b, have_b))
        ]
        if None not in pair and pair != [have_a["default"], have_b["default"]]:
            have_a[f"default in {file}"], have_b[f"default in {file}"] = map(str, pair)
    for name in dict.fromkeys((*have_a, *have_b)):
        if name not in have_b:
            yield Template(name, "a")
        elif name not in have_a:
            yield Template(name, "b")
        elif have_a[name] != have_b[name]:
            yield _compare(name, (have_a[name], a.folder), (have_b[name], b.folder))


def _templates(checkpoint: Checkpoint, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The templates of a folder by name, and the default template of each file.

    A file of its own overrides the tokenizer's config. Versions of transformers, tokenizer and
    processor read different files.
    """
    found: dict[str, str] = {}
    stored: dict[str, str] = {}
    for file in _FILES[:2]:
        said = (read_json(checkpoint, file) or {}).get("chat_template")
        found.pop("default", None)
        if isinstance(said, str):
            found["default"] = said
        elif isinstance(said, Mapping):
            found |= {str(name): str(text) for name, text in said.items()}
        elif isinstance(said, list):
            entries = (entry for entry in said if isinstance(entry, Mapping))
            found |= {str(e.get("name")): str(e.get("template")) for e in entries}
        stored |= {file: found["default"]} if "default" in found else {}
    if has_file(folder / _FILES[2]):
        stored[_FILES[2]] = read_text(folder / _FILES[2])
    if stored:
        found["default"] = [*stored.values()][-1]
    with readable(folder / _FURTHER):
        further = sorted((folder / _FURTHER).glob("*.jinja"))
    return found | {path.stem: read_text(path) for path in further}, stored


def _compare(name: str, a: tuple[str, Path], b: tuple[str, Path]) -> Template:
    """Render two templates of different text."""
    lines = enumerate(zip_longest(a[0].splitlines(), b[0].splitlines()), 1)
    line = next((number for number, (left, right) in lines if left != right), 0)
    asked = [
        [conversation, begins] for conversation in conversations(_PARTS) for begins in (True, False)
    ]
    prompts = []
    for side, (template, folder) in (("A", a), ("B", b)):
        vocabulary = read_vocabulary(folder)
        special = dict(vocabulary.special) if vocabulary is not None else {}
        request = {"template": template, "special": special, "conversations": asked}
        try:
            prompts.append(bounded("llava_remap.folder.render", request))
        except BeyondBoundsError as error:
            return Template(name, line=line, reason=f"the template of {side} {error}")
    texts = [[_text(made) for made in side] for side in prompts]
    differing = [
        Rendered(conversation, left, right)
        for (conversation, _), left, right in zip(asked, *texts, strict=True)
        if left != right
    ]
    first = differing[0] if differing else None
    return Template(name, None, line, len(asked), len(differing), first)


def _text(made: Mapping[str, Any]) -> str:
    return str(made["prompt"]) if "prompt" in made else f"error: {made['error']}"
