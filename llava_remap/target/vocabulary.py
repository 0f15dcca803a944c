"""What a checkpoint's tokenizer files say, without building a tokenizer: how many ids, which words, which special tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import read_object
from llava_remap.errors import Problem, refuse
from llava_remap.rulefile import Token

_REPLACE = "Replace it by the original one."


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a tokenizer.

    Attributes:
        folder: where its files are.
        ids: word → id.
        next_id: the id that the next added token gets.
        special: role (`pad_token`, `unk_token`, …) → word.
    """

    folder: Path
    ids: Mapping[str, int]
    next_id: int
    special: Mapping[str, str]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True, slots=True)
class PlacedToken:
    """A token of the rule file and its id. `added` says that the source's tokenizer doesn't have it yet."""

    text: str
    role: str
    id: int
    added: bool


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the tokenizer files of a folder: `tokenizer.json`, else `tokenizer.model`, else `vocab.json`; None without any.

    Raises:
        RemapError: LR113 for a file that can't be read.
    """
    try:
        return _read(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON of another form than a tokenizer's
        reason = f"{type(error).__name__}: {error}"
        raise refuse("LR113", f"the tokenizer files in {folder} are not of a tokenizer's form ({reason}).", _REPLACE) from None


def _read(folder: Path) -> Vocabulary | None:
    added: dict[str, int] = {}
    if (folder / "tokenizer.json").is_file():
        content = _json(folder / "tokenizer.json")
        words = content["model"]["vocab"]
        base = dict(words) if isinstance(words, dict) else {word: i for i, (word, _) in enumerate(words)}
        added |= {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    elif (folder / "tokenizer.model").is_file():
        base = _sentencepiece(folder / "tokenizer.model")
    elif (folder / "vocab.json").is_file():
        base = _json(folder / "vocab.json")
    else:
        return None
    config = _json(folder / "tokenizer_config.json")
    added |= _json(folder / "added_tokens.json")
    added |= {_word(token): int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
    ids = base | added
    if not all(isinstance(i, int) for i in ids.values()):
        raise TypeError("an id that is no whole number")
    last = max(added.values(), default=-1)
    # As the tokenizers library counts: behind the last added token, but never inside the model's own vocabulary.
    next_id = last + 1 if last >= len(base) else len(base)
    special = {**_json(folder / "special_tokens_map.json"), **{k: v for k, v in config.items() if v is not None}}
    roles = {role: _word(token) for role, token in special.items() if role.endswith("_token") and isinstance(token, (str, dict))}
    return Vocabulary(folder, ids, next_id, roles)


def place_tokens(tokens: Sequence[Token], vocabulary: Vocabulary | None, rows: int) -> tuple[PlacedToken, ...]:
    """Give every token of a rule file its id: the one it has, else the next free one.

    A pad token is added only where the tokenizer has none of its own; `<unk>` standing in for one doesn't count.
    Without a tokenizer the ids follow the `rows` of the embedding, as they do for every tokenizer without spare rows.
    """
    free = vocabulary.next_id if vocabulary else rows
    ids = vocabulary.ids if vocabulary else {}
    special = vocabulary.special if vocabulary else {}
    placed: list[PlacedToken] = []
    for token in tokens:
        text = token.text
        pad = special.get("pad_token")
        if token.role == "pad" and pad is not None and pad in ids and pad != special.get("unk_token"):
            text = pad
        known = ids.get(text)
        placed.append(PlacedToken(text, token.role, free if known is None else known, known is None))
        free += known is None
    return tuple(placed)


def vocabulary_problems(
    vocabulary: Vocabulary | None, tokens: Sequence[PlacedToken], config_rows: object, rows: int, rows_after: int
) -> list[Problem]:
    """LR402 where config, tokenizer and embedding disagree on the size of the vocabulary, or new tokens get no row.

    Args:
        config_rows: what the source's config says, or None.
        rows: rows of the embedding in the checkpoint.
        rows_after: rows of the embedding that will be written.
    """
    if config_rows is not None and config_rows != rows and rows:
        return [
            Problem(
                "LR402",
                f"embed_tokens has {rows} rows, the source's config says vocab_size: {config_rows!r}.",
                "If the weights are right, set vocab_size in the source's config.json to the rows.",
            )
        ]
    ours = {token.text for token in tokens}
    words = [word for word, i in vocabulary.ids.items() if i >= rows and word not in ours] if vocabulary is not None else []
    if vocabulary is not None and words:
        return [
            Problem(
                "LR402",
                f"embed_tokens has {rows} rows, the tokenizer in {vocabulary.folder} has {vocabulary.size} tokens.",
                "Put the tokenizer files there that the checkpoint was trained with.",
            )
        ]
    if beyond := [token for token in tokens if token.id >= rows_after]:
        listed = ", ".join(f"`{token.text}` {token.id}" for token in beyond)
        return [
            Problem(
                "LR402",
                f"embed_tokens will have {rows_after} rows, and there is none for {listed}.",
                "Add `use: expand_embeddings` to `post_load` of the rule file.",
            )
        ]
    return []


def _word(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    return read_object(path, "LR113", _REPLACE, unique=False) if path.is_file() else {}


def _sentencepiece(path: Path) -> dict[str, int]:
    import sentencepiece

    try:
        name: Any = os.fsencode(path)  # one that is no UTF-8 goes as bytes only
        model = sentencepiece.SentencePieceProcessor(model_file=name)
    except (RuntimeError, OSError) as error:
        raise refuse("LR113", f"{path} is not a SentencePiece model: {error}.", _REPLACE) from None
    return {model.id_to_piece(i): i for i in range(model.get_piece_size())}
