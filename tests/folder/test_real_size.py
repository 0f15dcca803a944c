"""A model of 4000 pieces, trained as Llama's was, with pieces of spaces alone of many lengths:
runs of every length up to 200.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from llava_remap.folder.llama_tokenizer import LlamaTokenizer
from tests.compat.run import ROOT
from tests.folder.sentencepieces import added_tokens, train

SIZE = 4000
LONGEST = 200
RUNS = {"space": " ", "newline": "\n", "tab": "\t", "minus": "-", "equals": "=", "star": "*"}


@cache
def model() -> bytes:
    """Trained on this project's own text and code, and tables and indentation beside them.

    In Llama's own model pieces of spaces alone have the lowest scores; here they are given them.
    """
    files = sorted(
        path
        for kind in ("*.md", "llava_remap/**/*.py", "rules/**/*.yaml")
        for path in ROOT.glob(kind)
    )
    text = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    chance = random.Random(0)
    table = [" " * chance.randint(1, 30) + word for line in text for word in line.split()[:1]]
    ruled = [chance.choice("-=*\t") * chance.randint(2, 40) for _ in range(500)]
    made = train(
        [*text, *table, *ruled],
        model_type="bpe",
        vocab_size=SIZE,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9995,
        max_sentencepiece_length=16,
    )
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(made)
    for piece in proto.pieces:
        if set(piece.piece) == {"▁"}:
            piece.score = -1e9
    content: bytes = proto.SerializeToString()
    return content


@cache
def both(legacy: bool) -> tuple[LlamaTokenizer, Any]:
    reference = LlamaTokenizer(model(), added_tokens(model()), {"legacy": legacy})
    backend = reference.backend()
    for token in added_tokens(model()).values():
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    return reference, backend


def test_it_has_pieces_of_spaces_alone_whose_scores_are_the_lowest() -> None:
    """Their ids aren't the highest: merges ordered by id would be others."""
    reference, _ = both(True)
    pieces = [piece for piece in reference._proto.pieces if piece.type == 1]
    assert len(reference.ids) == SIZE
    blank = [piece for piece in pieces if len(piece.piece) > 1 and set(piece.piece) == {"▁"}]
    others = [piece for piece in pieces if set(piece.piece) != {"▁"}]
    assert len(blank) >= 8
    assert max(piece.score for piece in blank) < min(piece.score for piece in others)
    assert min(reference.ids[piece.piece] for piece in blank) < SIZE // 2


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("sign", RUNS)
def test_runs_of_every_length(sign: str, legacy: bool) -> None:
    """Alone, before, behind and between words, and behind a special token."""
    reference, backend = both(legacy)
    texts = [
        text
        for length in range(1, LONGEST + 1)
        for run in [RUNS[sign] * length]
        for text in (
            run,
            f"{run}return",
            f"value{run}",
            f"a{run}b",
            f"a {run} b",
            f"fine</s>{run}next",
        )
    ]
    assert {text: backend.encode(text).ids for text in texts} == {
        text: reference.encode(text) for text in texts
    }


@pytest.mark.parametrize("legacy", [True, False])
def test_mixed_runs(legacy: bool) -> None:
    reference, backend = both(legacy)
    chance = random.Random(1)
    runs = [*RUNS.values(), "  ", "    ", "\n    ", "x", "def ", ".", "</s>"]
    texts = [
        "".join(chance.choice(runs) * chance.randint(1, 20) for _ in range(chance.randint(1, 12)))
        for _ in range(LONGEST * 2)
    ]
    assert {text: backend.encode(text).ids for text in texts} == {
        text: reference.encode(text) for text in texts
    }


@pytest.mark.parametrize("legacy", [True, False])
def test_whole_files(legacy: bool) -> None:
    reference, backend = both(legacy)
    files = [
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "Makefile",
        *sorted((ROOT / "llava_remap" / "folder").glob("*.py")),
    ]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert all(backend.encode(text).ids == reference.encode(text) for text in texts.values())
