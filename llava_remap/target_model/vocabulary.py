"""Reads ids, words and special tokens from tokenizer files, without building a tokenizer."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import has_file
from llava_remap.core import Problem, quoted, refuse
from llava_remap.core.problem import ConfigError
from llava_remap.rulefile import Token
from llava_remap.target_model.source_files import read_beside
from llava_remap.target_model.tekken import TEKKEN, has_tekken, read_tekken

#: A padded embedding has a multiple of this many rows.
_PADDED_TO = 64
#: Roles of tokens that only prompts have. Without a tokenizer, nothing asks for their ids.
_OF_PROMPTS = ("image_start", "image_end")
_REPLACE = "Replace it with the original file."


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a tokenizer.

    Attributes:
        folder: the folder with its files.
        ids: word → id.
        next_id: the id of the next token to be added.
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
    """A token of the rule file with its id.

    Attributes:
        text: the token as the tokenizer spells it.
        role: what it stands for.
        id: its id.
        added: whether the source's tokenizer lacks it.
        attribute: the tokenizer's attribute that has the token, or None.
        trained: whether the training added it, so that it has a row.
    """

    text: str
    role: str
    id: int
    added: bool
    attribute: str | None = None
    trained: bool = False


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the tokenizer files of a folder: `tokenizer.json`, or else `tokenizer.model`, or else
    `vocab.json`, or else Mistral's `tekken.json`; None without these, and for a tekken.json without
    the library that reads it.

    Raises:
        RemapError: LR113 for a file that can't be read.
    """
    added: dict[str, int] = {}
    own: dict[str, str] = {}
    if has_file(file := folder / "tokenizer.json"):
        base, added = _tokenizers_words(file, read_beside(folder, file.name))
    elif has_file(folder / "tokenizer.model"):
        base = _sentencepiece(folder / "tokenizer.model")
    elif has_file(folder / "vocab.json"):
        base = read_beside(folder, "vocab.json")
    elif has_tekken(folder):
        tekken = read_tekken(folder)
        base, added = _tokenizers_words(folder / TEKKEN, json.loads(tekken.tokenizer))
        own = tekken.special
    else:
        return None
    config = read_beside(folder, "tokenizer_config.json")
    added |= read_beside(folder, "added_tokens.json")
    added |= {_word(token): int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
    special = {
        **own,
        **read_beside(folder, "special_tokens_map.json"),
        **{k: v for k, v in config.items() if v is not None},
    }
    return Vocabulary(
        folder,
        base | added,
        # As the tokenizers library counts: after the last added token, but never inside the model's
        # own vocabulary.
        max(len(base), max(added.values(), default=-1) + 1),
        {
            role: _word(token)
            for role, token in special.items()
            if role.endswith("_token") and isinstance(token, (str, dict))
        },
    )


def _tokenizers_words(
    file: Path, content: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, int]]:
    """Word → id in the content of a `tokenizer.json`: the model's own words, and the added words.

    Args:
        file: the source's file, for messages.
    """
    try:
        words = content["model"]["vocab"]
        base = (
            dict(words)
            if isinstance(words, dict)
            else {word: i for i, (word, _) in enumerate(words)}
        )
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        if odd := [word for word, i in (base | added).items() if type(i) is not int]:
            raise TypeError(f"the id of {odd[0]!r} isn't a whole number")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise refuse(
            "LR113",
            f"{quoted(str(file))} doesn't have the form of a tokenizer ({type(error).__name__}: "
            f"{error}).",
            _REPLACE,
        ) from None
    return base, added


def place_tokens(
    tokens: Sequence[Token], vocabulary: Vocabulary | None, rows: int, config: Mapping[str, Any]
) -> tuple[PlacedToken, ...]:
    """Give every token of a rule file its id: its id in the tokenizer, or else the next free id.

    A pad token is added only if the tokenizer has no pad token of its own; `<unk>` as pad token
    doesn't count. Without a tokenizer, an id comes from the source's `config`, or follows the
    `rows` of the embedding, as with every tokenizer without spare rows.

    Raises:
        RemapError: LR112 for a token without an id that can't be added.
    """
    ids, free, special = (
        (vocabulary.ids, vocabulary.next_id, vocabulary.special) if vocabulary else ({}, rows, {})
    )
    pad = special.get("pad_token")
    has_pad = pad in ids and pad != special.get("unk_token")
    placed: list[PlacedToken] = []
    for token in tokens:
        if vocabulary is None and token.role in _OF_PROMPTS:
            continue
        text = pad if pad is not None and has_pad and token.role == "pad" else token.text
        known = (
            ids.get(text)
            if vocabulary is not None
            else next(iter(_said_ids(token.role, config).values()), None)
        )
        if known is None and not token.add:
            where = f"the tokenizer in {vocabulary.folder}" if vocabulary else "no tokenizer"
            raise ConfigError.of(
                "LR112",
                f"the training had a token `{text}`, and {where} has it"
                + (" not." if vocabulary else ", so nothing shows its id."),
                "Put the tokenizer files of the training beside the checkpoint.",
            )
        placed_id = free if known is None else known
        placed.append(
            PlacedToken(text, token.role, placed_id, known is None, token.attribute, token.trained)
        )
        free += known is None
    return tuple(placed)


def vocabulary_problems(
    vocabulary: Vocabulary | None,
    tokens: Sequence[PlacedToken],
    config: Mapping[str, Any],
    rows: int,
    rows_after: int,
    vocab: str | int,
    *,
    adds_rows: bool,
    rows_of_base: int | None = None,
) -> list[Problem]:
    """LR402 and LR403 if config, tokenizer and embedding disagree on the number of tokens or on
    their ids.

    Args:
        config: the source's config of the language model.
        rows: rows of the embedding in the checkpoint.
        rows_after: rows of the embedding to write.
        vocab: the option --vocab: `pad`, `keep` or a number of rows.
        adds_rows: whether a rule of `post_load` can add rows.
        rows_of_base: rows of the base's embedding, if another source's embedding replaces it.
    """
    problems = [*_id_problems(vocabulary, tokens, config)]
    said = config.get("vocab_size")
    if said is not None and said != rows and rows:
        return [
            *problems,
            Problem(
                "LR402",
                f"embed_tokens has {rows} rows, the source's config says vocab_size: {said!r}.",
                "If the weights are right, set vocab_size in the source's config.json to the "
                "number of rows.",
            ),
        ]
    ours = {token.text for token in tokens}
    if (
        vocabulary is not None
        and rows
        and any(i >= rows and word not in ours for word, i in vocabulary.ids.items())
    ):
        return [
            *problems,
            Problem(
                "LR402",
                f"embed_tokens has {rows} rows, the tokenizer in {vocabulary.folder} has "
                f"{vocabulary.size} tokens.",
                "Put the tokenizer files there that the checkpoint was trained with.",
            ),
        ]
    if vocabulary is not None and (
        unexplained := _unexplained_rows(vocabulary, tokens, rows, rows_of_base)
    ):
        return [*problems, unexplained]
    beyond = [token for token in tokens if token.id >= rows_after]
    needed = max((token.id + 1 for token in tokens), default=0)
    # If `pad` was given, it doesn't help.
    pad = "" if vocab == "pad" else "--vocab pad, or "
    as_it_is = "Give --vocab keep, or leave it out."
    if isinstance(vocab, int) and vocab < rows:
        cause = f"--vocab {vocab}: embed_tokens has {rows} rows, and rows are never removed."
        fix = f"Give {pad}--vocab {max(rows, needed)} or more." if adds_rows else as_it_is
    elif beyond:
        cause = (
            f"embed_tokens will have {rows_after} rows, so there is no row for "
            f"{', '.join(f'`{token.text}` {token.id}' for token in beyond)}: {needed} are needed."
        )
        fix = (
            f"Give {pad}--vocab {needed} or more."
            if adds_rows
            else "Add `use: expand_embeddings` to the rule file's `post_load`."
        )
    elif isinstance(vocab, int) and vocab != rows_after:
        cause = (
            f"--vocab {vocab}: embed_tokens has {rows} rows, and none can be added: no rule "
            "of `post_load` adds rows."
        )
        fix = as_it_is
    else:
        return problems
    return [*problems, Problem("LR402", cause, fix)]


def _unexplained_rows(
    vocabulary: Vocabulary, tokens: Sequence[PlacedToken], rows: int, rows_of_base: int | None
) -> Problem | None:
    """LR402 if a new token would get a row that was trained for a token missing from the tokenizer
    files.

    Rows after the tokenizer's tokens are spare if the table was padded to a multiple of 64 (Qwen:
    151936 rows for 151646 tokens). A vocabulary of such a multiple (Llama: 32000) needs no padding.
    Otherwise each row may have been added for a token, and so may rows that a training added to its
    base. Tokens of the rule file that the training added count as those of the tokenizer.
    """
    taken = [token for token in tokens if token.added and token.id < rows and not token.trained]
    grown = rows_of_base is not None and vocabulary.size <= rows_of_base < rows
    size = vocabulary.size + sum(token.added and token.trained for token in tokens)
    padded = rows % _PADDED_TO == 0 and size % _PADDED_TO
    if not taken or (padded and not grown):
        return None
    base = f", that of its base {rows_of_base}" if grown else ""
    listed = " and ".join(f"`{token.text}`" for token in taken)
    return Problem(
        "LR402",
        f"embed_tokens has {rows} rows{base}, the tokenizer in {vocabulary.folder} has "
        f"{vocabulary.size} tokens. The rows from {taken[0].id} on may have been trained for "
        f"tokens that the tokenizer doesn't know, and {listed} would get these rows.",
        "Put the tokenizer files there that the checkpoint was trained with, added_tokens.json "
        "included. If the rows are spare, "
        f'give each a token in added_tokens.json: {{"<spare_0>": {taken[0].id}, …}}.',
    )


def _id_problems(
    vocabulary: Vocabulary | None, tokens: Sequence[PlacedToken], config: Mapping[str, Any]
) -> Iterator[Problem]:
    """LR403 if two tokens have the same id, or if config and tokenizer have different ids for a
    token.
    """
    if vocabulary is None:
        return
    words: dict[int, list[str]] = defaultdict(list)
    for word, i in vocabulary.ids.items():
        words[i].append(word)
    fix = (
        "Put the tokenizer files there that the checkpoint was trained with, in "
        f"{vocabulary.folder}."
    )
    for token in tokens:
        if others := [word for word in words[token.id] if word != token.text]:
            yield Problem(
                "LR403",
                f"`{token.text}`, the {token.role} token, has id {token.id}, and so has "
                f"`{others[0]}`.",
                fix,
            )
        roles = [other.role for other in tokens if other.id == token.id]
        if len(roles) > 1 and token.role == roles[0]:
            yield Problem(
                "LR403",
                f"`{token.text}` has id {token.id}, and it is "
                f"{' and '.join(f'the {role} token' for role in roles)}.",
                "Give the tokenizer its own pad token, or no pad token.",
            )
        for key, said in _said_ids(token.role, config).items():
            if said != token.id:
                taken = f", which is `{words[said][0]}`" if words[said] else ""
                yield Problem(
                    "LR403",
                    f"`{token.text}` is {token.id} in the tokenizer, the source's config says "
                    f"{key}: {said}{taken}.",
                    f"{fix[:-1]}; or remove {key} from the source's config.json.",
                )


def _said_ids(role: str, config: Mapping[str, Any]) -> dict[str, int]:
    """Key → a token's id in the source's config. A pad token's key doesn't count, since any token
    may be used for padding.

    LLaVA's own code marks images by a negative number, which is no token's id.
    """
    return {
        key: said
        for key in (f"{role}_token_index", f"{role}_token_id")
        if role != "pad" and type(said := config.get(key)) is int and said >= 0
    }


def _word(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _sentencepiece(path: Path) -> dict[str, int]:
    from llava_remap.core.libraries import check_libraries, import_asked

    import_asked(["sentencepiece"])
    from sentencepiece import SentencePieceProcessor

    try:
        name: Any = os.fsencode(path)  # a path that isn't UTF-8 can only be given as bytes
        model = SentencePieceProcessor(model_file=name)
    except (RuntimeError, OSError) as error:
        check_libraries()
        raise refuse("LR113", f"{path} is not a SentencePiece model: {error}.", _REPLACE) from None
    return {model.id_to_piece(i): i for i in range(model.get_piece_size())}
