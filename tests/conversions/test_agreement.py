"""Rules that were imported from transformers do what its own engine does: the same names, shapes
and bytes, in both directions.
"""

from __future__ import annotations

import pytest

from llava_remap.target_model import conversion_types
from tests.conversions.agree import compare
from tools.conversions_table import table, tried, written

#: Types that have every operation between them: each entry with the operation that it is here for.
FEW = {
    "SiglipVisionModel": "renames alone",
    "nomic_bert": "chunk",
    "Molmo2TextModel": "split by the target's sizes",
    "step3p5_vision": "chunk, then a rope permutation of some parts",
    "inkling2_text": "interleave",
    "qwen4_exp_text": "as many parts as the config says",
    "nemo_speechlm": "transpose",
    "granitemoe": "names of its own for experts that are joined already",
    "mixtral": "stack, and stack before concat",
}


@pytest.mark.parametrize("kind", FEW)
def test_the_same_tensors_as_transformers(kind: str) -> None:
    found = compare(kind)
    assert not found.refused
    assert not found.untried
    assert found.different == ()
    assert found.tensors


@pytest.mark.long
def test_every_entry_is_as_the_table_says() -> None:
    outcomes = {kind: tried(kind) for kind in conversion_types()}
    assert not {kind: one.different for kind, one in outcomes.items() if one.different}
    assert table(outcomes) == written()
