"""Real tokenizers of three kinds, made of the vocabularies that llama.cpp's source brings along.

llama.cpp's converter takes byte-level BPE only from tokenizers that it knows by how they cut a
test text, so the small tokenizers of the other twins will not do. Its source has the vocabularies
of Llama, Llama 3 and Qwen2 as GGUF files, with texts and the ids that the genuine tokenizers make
of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from struct import calcsize, unpack
from typing import Any, BinaryIO

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

#: How Llama 3's tokenizer cuts text into words, but for the number of digits.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BETWEEN = "\n__ggml_vocab_test__\n"
#: Types of tokens in a GGUF file.
_NORMAL, _CONTROL = 1, 3
#: Types of values in a GGUF file: numbers as `struct` names them, texts, arrays.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"}
_NUMBERS |= {10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_FLAGS = {
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary in the folder `models` of llama.cpp's source.

    Attributes:
        file: its GGUF file.
        fields: what the file says of the tokenizer, without the prefix `tokenizer.ggml.`.
    """

    file: Path
    fields: dict[str, Any]

    @cached_property
    def cases(self) -> list[tuple[str, list[int]]]:
        """Texts, and the ids that the genuine tokenizer makes of each, without `<s>` before."""
        texts = Path(f"{self.file}.inp").read_text(encoding="utf-8").split(_BETWEEN)
        lines = Path(f"{self.file}.out").read_text(encoding="utf-8").splitlines()
        assert len(texts) == len(lines) + 1
        assert texts[-1].strip() == ""
        return [
            (text, [int(number) for number in line.split()])
            for text, line in zip(texts, lines, strict=False)
        ]

    def tokens(self, kind: int) -> dict[str, int]:
        """Token → id, of one type."""
        types = self.fields["token_type"]
        return {token: i for i, token in enumerate(self.fields["tokens"]) if types[i] == kind}


def read_vocabulary(source: Path, name: str) -> Vocabulary:
    """Read a vocabulary of llama.cpp's source.

    Args:
        source: the folder of llama.cpp.
        name: `llama-spm`, `llama-bpe` or `qwen2`.
    """
    file = source / "models" / f"ggml-vocab-{name}.gguf"
    prefix = "tokenizer.ggml."
    with file.open("rb") as opened:
        fields = read_fields(opened)
    return Vocabulary(
        file,
        {
            key.removeprefix(prefix): value
            for key, value in fields.items()
            if key.startswith(prefix)
        },
    )


def read_fields(file: BinaryIO) -> dict[str, Any]:
    """The metadata of a GGUF file, by key.

    The reader that llama.cpp brings along takes half a minute for the merges of Llama 3 alone.
    """

    def read(kind: str) -> Any:
        return unpack(f"<{kind}", file.read(calcsize(f"<{kind}")))[0]

    def read_text() -> str:
        return file.read(read("Q")).decode("utf-8")

    def read_value(kind: int) -> Any:
        if kind == _TEXT:
            return read_text()
        if kind == _ARRAY:
            inner, size = read("I"), read("Q")
            return [read_value(inner) for _ in range(size)]
        return read(_NUMBERS[kind])

    assert file.read(4) == b"GGUF"
    assert read("I") == 3
    read("Q")  # number of tensors
    return {read_text(): read_value(read("I")) for _ in range(read("Q"))}


def write_sentencepiece(vocabulary: Vocabulary, folder: Path, added: Sequence[str] = ()) -> None:
    """Llama's tokenizer as it is released: `tokenizer.model`, a config, and added tokens."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    rows = (vocabulary.fields[key] for key in ("tokens", "scores", "token_type"))
    for piece, score, kind in zip(*rows, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = True
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        **roles,
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 4096,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "special_tokens_map.json", {**roles, "pad_token": "<unk>"})
    if added:
        ids = {token: len(model.pieces) + i for i, token in enumerate(added)}
        _write(folder / "added_tokens.json", ids)


def write_qwen2(vocabulary: Vocabulary, folder: Path) -> None:
    """Qwen2's tokenizer as it is released: `vocab.json`, `merges.txt` and a config."""
    _write(folder / "vocab.json", vocabulary.tokens(_NORMAL))
    merges = ["#version: 0.2", *vocabulary.fields["merges"], ""]
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    _write(folder / "tokenizer_config.json", qwen2_config(vocabulary.tokens(_CONTROL)))


def qwen2_config(special: Mapping[str, int]) -> dict[str, Any]:
    """The config of Qwen2's tokenizer as it is released, with these special tokens and their
    ids.
    """
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": t, **_FLAGS} for t, i in special.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def write_llama3(vocabulary: Vocabulary, folder: Path) -> None:
    """Llama 3's tokenizer as it is released: `tokenizer.json` and a config."""
    special = vocabulary.tokens(_CONTROL)
    first = "<|begin_of_text|>"
    tokenizer = byte_level(vocabulary, digits="{1,3}")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{first} $A",
                pair=f"{first} $A {first}:1 $B:1",
                special_tokens=[(first, special[first])],
            ),
        ]
    )
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "added_tokens_decoder": {str(i): {"content": t, **_FLAGS} for t, i in special.items()},
        "bos_token": first,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|end_of_text|>",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(folder / "tokenizer_config.json", config)


def byte_level(vocabulary: Vocabulary, digits: str) -> Tokenizer:
    """Byte-level BPE as Llama 3 has it, without special tokens.

    Args:
        vocabulary: ordinary tokens and merges.
        digits: how many digits are a word, as a regular expression's quantifier.
    """
    merges = [tuple(merge.split(" ")) for merge in vocabulary.fields["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary.tokens(_NORMAL), merges, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(_WORDS % digits), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
