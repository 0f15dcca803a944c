"""A small vocabulary, with the special tokens of the large one's kind, and a tokenizer that has it.

Ids below 100 stay, as Llama's first three; those behind a large vocabulary move behind the small
one, as Qwen's. Between them are the 256 bytes, so that every text can be said, and merges of a
blank with the sign that follows it. Rows behind the last token stay spare.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_remap.authoring.shrink.config import token_ids
from llava_remap.core.problem import refuse
from llava_remap.folder.json_file import json_bytes
from llava_remap.target_model.presets import SPECIAL_TOKENS

_LOW = 100
#: Spare rows of a small embedding, where the large one has at least as many.
_SPARE = 17
_BLANK = "Ġ"
#: Words that LLaVA adds at the end of a vocabulary, by the keys of its config that say so.
_ADDED = {
    "mm_use_im_patch_token": ("<im_patch>",),
    "mm_use_im_start_end": ("<im_start>", "<im_end>"),
}


@dataclass(frozen=True, slots=True)
class SmallVocabulary:
    """The words of a small tokenizer.

    Attributes:
        words: by id.
        special: ids of special tokens.
        ids: what the ids of special tokens become.
        roles: `bos_token`, `eos_token`, … → word.
    """

    words: tuple[str, ...]
    special: tuple[int, ...]
    ids: Mapping[int, int]
    roles: Mapping[str, str]


def small_vocabulary(config: Mapping[str, Any], rows: int, small_rows: int) -> SmallVocabulary:
    """Find places for the special tokens of a config.

    Args:
        rows: of the large embedding.
        small_rows: of the small one.

    Raises:
        RemapError: LR112 where there are too few rows for a vocabulary.
    """
    named = token_ids(config)
    ends = {i for i, role in named.items() if role in ("bos", "eos")}
    words, by_role = max(SPECIAL_TOKENS, key=lambda kind: len(ends.intersection(kind[0])))
    if not ends.intersection(words):  # a kind that isn't known
        words, by_role = {}, {}
    added = [word for key, group in _ADDED.items() if config.get(key) for word in group]
    special = {i: word for i, word in words.items() if i < rows}
    special |= {rows - len(added) + n: word for n, word in enumerate(added)}
    for i, role in named.items():
        if i < rows and i not in special:
            special[i] = f"<{role}>" if f"<{role}>" not in special.values() else f"<{role}-{i}>"
    low, high = (sorted(i for i in special if (i < _LOW) is wanted) for wanted in (True, False))
    size = small_rows - (min(rows - high[-1] - 1, _SPARE) if high else 0)
    ids = {**{i: i for i in low}, **{i: size - len(high) + n for n, i in enumerate(high)}}
    ordinary = iter(_ordinary(size - len(special)))
    placed = {ids[i]: word for i, word in special.items()}
    every = tuple(placed.get(i) or next(ordinary) for i in range(size))
    roles = by_role or {
        f"{role}_token": i for i, role in named.items() if role in ("bos", "eos", "pad", "unk")
    }
    return SmallVocabulary(
        every,
        tuple(sorted(placed)),
        ids,
        {role: every[ids[i]] for role, i in roles.items() if i in ids},
    )


def tokenizer_files(vocabulary: SmallVocabulary) -> dict[str, bytes]:
    """`tokenizer.json`, in byte-level BPE, and its config, by file name."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    low = {i for i in vocabulary.special if i < _LOW}
    inside = {
        word: i
        for i, word in enumerate(vocabulary.words)
        if i in low or i not in vocabulary.special
    }
    merges = [(_BLANK, word[1]) for word in inside if len(word) == 2 and word[0] == _BLANK]
    tokenizer = Tokenizer(models.BPE(inside, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [vocabulary.words[i] for i in vocabulary.special]
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in words]
    )
    if first := vocabulary.roles.get("bos_token"):
        places = [(first, vocabulary.words.index(first))]
        tokenizer.post_processor = processors.TemplateProcessing(
            f"{first} $A", f"{first} $A {first} $B:1", places
        )
    flags = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    config = {
        "added_tokens_decoder": {
            str(i): {"content": vocabulary.words[i], **flags} for i in vocabulary.special
        },
        "clean_up_tokenization_spaces": False,
        "model_input_names": [
            "input_ids",
            "attention_mask",
        ],  # 4.46 would make token types as well, which no model here takes
        **dict(sorted(vocabulary.roles.items())),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode() + b"\n",
        "tokenizer_config.json": json_bytes(config),
    }


def _ordinary(count: int) -> list[str]:
    """As many words as are wanted: every byte, as byte-level BPE writes it, then merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [
        *letters,
        *(_BLANK + sign for sign in string.ascii_letters + string.digits + string.punctuation),
    ]
    if not len(letters) <= count <= len(words):
        raise refuse(
            "LR112",
            f"a vocabulary of {count} words beside the special ones; a small one has "
            f"{len(letters)} to {len(words)}.",
            "Give a checkpoint with more rows.",
        )
    return words[:count]
