"""Small SentencePiece models of many kinds, and texts that tokenizers disagree on."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from tokenizers import AddedToken

from llava_remap.folder.llama_tokenizer import LlamaTokenizer

_TEXT = (
    "def f(x):\n    if x > 3:\n        return  x", "The quick  brown fox jumps over the lazy dog.",
    "USER: hi ASSISTANT: ho",
    "name      value  note", "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "über alles café",
    "    indentation   is  here", "1234567890 12 34 56", "----------------", "\t\ttabs",
    "a>( b>(c) >(d) >> x>> y", "== ** =====",
)  # fmt: skip
#: Of what texts are drawn: letters and marks of the models' training, some that they have as bytes
#: only, and special tokens.
FRAGMENTS = (
    *"abcdefghijklmnopqrstuvwxyzUSERTIN:.,>(){}=+-*/0123456789éü漢🙂\t\n",
    " ", "  ", "   ", "    ", "\n\n", "\n    ", "▁", "ﬁ", "½", "\u00a0", "\u3000", "\u200b",
    "e\u0301", "\x07", "👍🏽", "кош",
    "</s>", "<s>", "<unk>", "<im_start>", "[SEG]", "<usr>", "**", "<0x0A>",
)  # fmt: skip
#: Pieces that a model is told to keep whole.
OWN = ("<usr>", "**")
IMAGE = "<image>"


@dataclass(frozen=True)
class Kind:
    """How a model is trained."""

    unigram: bool = False
    nfkc: bool = False
    strips: bool = False
    prefix: bool = True
    own: bool = False
    as_bytes: bool = True

    @property
    def name(self) -> str:
        said = (
            "unigram" if self.unigram else "bpe",
            *(key for key in ("nfkc", "strips", "own") if getattr(self, key)),
        )
        return "-".join(
            (
                *said,
                *(() if self.prefix else ("no-prefix",)),
                *(() if self.as_bytes else ("no-bytes",)),
            )
        )


KINDS = tuple(
    Kind(*flags)
    for flags in product((False, True), (False, True), (False, True), (True, False), (False, True))
)
#: What a config says of `legacy` and `add_prefix_space`.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "legacy absent": {},
    "legacy true": {"legacy": True},
    "legacy false": {"legacy": False},
    "legacy false, prefix null": {"legacy": False, "add_prefix_space": None},
    "legacy false, no prefix": {"legacy": False, "add_prefix_space": False},
}


@cache
def trained(kind: Kind) -> bytes:
    return train(
        _TEXT * 20,
        model_type="unigram" if kind.unigram else "bpe",
        normalization_rule_name="nmt_nfkc" if kind.nfkc else "identity",
        remove_extra_whitespaces=kind.strips,
        add_dummy_prefix=kind.prefix,
        user_defined_symbols=list(OWN) if kind.own else [],
        byte_fallback=kind.as_bytes,
        vocab_size=400,
    )


def train(texts: Sequence[str], **options: Any) -> bytes:
    from sentencepiece import SentencePieceTrainer

    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return out.getvalue()


def size(model: bytes) -> int:
    from sentencepiece import SentencePieceProcessor

    return int(SentencePieceProcessor(model_proto=model).get_piece_size())


def added_tokens(model: bytes) -> dict[int, AddedToken]:
    """The special tokens of every model, one more that has no role, and one that isn't special."""
    texts = dict(enumerate(("<unk>", "<s>", "</s>"))) | dict(
        enumerate(("<im_start>", "[SEG]"), size(model))
    )
    return {
        i: AddedToken(text, special=text != "[SEG]", normalized=False) for i, text in texts.items()
    }


def tokenizer(kind: Kind, config: Mapping[str, Any]) -> LlamaTokenizer:
    model = trained(kind)
    return LlamaTokenizer(model, added_tokens(model), config)


def prompt_ids(reference: LlamaTokenizer, prompt: str, image: int, mark: str = IMAGE) -> list[int]:
    """What the research code makes of a prompt: its pieces encoded one by one, the picture's
    token between them.
    """
    first, *rest = (reference.encode(piece) for piece in prompt.split(mark))
    return first + [i for ids in rest for i in (image, *ids[len(reference.before) :])]


def drawn(chance: random.Random, count: int) -> list[str]:
    """Texts of fragments, with a fixed seed."""
    return ["".join(chance.choices(FRAGMENTS, k=chance.randint(0, 14))) for _ in range(count)]
