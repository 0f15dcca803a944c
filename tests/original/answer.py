"""What one version of transformers makes of converted folders, as values; `ask` makes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.original.facts import Pixels


@dataclass(frozen=True)
class Forward:
    """A forward pass.

    Attributes:
        error: why the model didn't take these inputs, or None.
        around: how the logits were computed after such an error, or None.
        logits: of the last position, at the places of the recorded ones; empty where there are
            none.
        argmax: the best token of each position that is text.
    """

    error: str | None
    around: str | None
    logits: tuple[float, ...]
    argmax: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What became of one case.

    Attributes:
        error: why there is no more than there is, or None.
        prompt: the chat template's, with `<image>` for a video as well.
        ids: the processor's.
        pixels: the processor's, one for each picture or for the video; tiles of zeros behind a
            picture's own are left out.
        whole: a forward pass with these inputs.
        alone: for each reading, a forward pass with its ids and with pixels made as the research
            code makes them.
    """

    error: str | None = None
    prompt: str | None = None
    ids: tuple[int, ...] | None = None
    pixels: tuple[Pixels, ...] | None = None
    whole: Forward | None = None
    alone: tuple[Forward, ...] = ()


@dataclass(frozen=True)
class Words:
    """What a tokenizer alone makes of the family's texts, and of each case's prompts by reading."""

    texts: tuple[tuple[int, ...], ...]
    prompts: dict[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class FolderAnswer:
    """What a version makes of a folder.

    Attributes:
        version: of transformers.
        error: why the folder didn't open, or None.
        closed: why AutoProcessor didn't open it, where its parts were opened one by one because of
            that; or None.
        has_torchvision: whether this version finds torchvision.
        model_type: the config's.
        image_token: the config's.
        video_token: the config's, or None.
        fast: the words of the processor's tokenizer.
        slow: those of the tokenizer that the folder gives for `use_fast=False`, or None.
        no_slow: why it gives none, or None.
        cases: by name.
    """

    version: str
    error: str | None
    closed: str | None
    has_torchvision: bool
    model_type: str
    image_token: int
    video_token: int | None
    fast: Words | None
    slow: Words | None
    no_slow: str | None
    cases: dict[str, Answer]


def read(path: Path) -> dict[str, FolderAnswer]:
    """What `ask` wrote, by the folders' names."""
    return {name: _folder_answer(said) for name, said in json.loads(path.read_text()).items()}


def _folder_answer(said: dict[str, Any]) -> FolderAnswer:
    words = {kind: said[kind] and _read_words(said[kind]) for kind in ("fast", "slow")}
    cases = {name: _read_answer(answer) for name, answer in said["cases"].items()}
    return FolderAnswer(**{**said, **words, "cases": cases})


def _read_words(said: dict[str, Any]) -> Words:
    prompts = {name: tuple(map(tuple, readings)) for name, readings in said["prompts"].items()}
    return Words(tuple(map(tuple, said["texts"])), prompts)


def _read_answer(said: dict[str, Any]) -> Answer:
    return Answer(
        said["error"],
        said["prompt"],
        None if said["ids"] is None else tuple(said["ids"]),
        None if said["pixels"] is None else tuple(map(Pixels.read, said["pixels"])),
        said["whole"] and _read_forward(said["whole"]),
        tuple(map(_read_forward, said["alone"])),
    )


def _read_forward(said: dict[str, Any]) -> Forward:
    return Forward(said["error"], said["around"], tuple(said["logits"]), tuple(said["argmax"]))
