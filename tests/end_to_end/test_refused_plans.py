"""Plans of a genuine checkpoint that are refused: dtypes that no parameter has, and names that
meet.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Changed, Run
from tests.small_llava import apply_v15


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.float8_e4m3fn], ids=["BOOL", "I64", "F8_E4M3"]
)
@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_a_parameter_is_a_float(dtype: torch.dtype, name: str, run: Run, changed: Changed) -> None:
    ran = apply_v15(run, changed(tensors=lambda t: t.update({name: t[name].to(dtype)})))
    assert ran.code == 1
    assert "LR409" in ran.out
    assert not Path("out").exists()


def test_a_doubled_embedding_is_a_collision(run: Run, changed: Changed) -> None:
    name = "model.embed_tokens.weight"
    ran = apply_v15(run, changed(tensors=lambda t: t.update({f"module.{name}": t[name].clone()})))
    assert ran.code == 1
    assert "LR304" in ran.out


def test_doubled_names_are_one_problem(run: Run, changed: Changed) -> None:
    ran = apply_v15(
        run,
        changed(
            tensors=lambda t: t.update(
                {f"module.{n}": x.clone() for n, x in list(t.items()) if "norm" in n}
            )
        ),
    )
    assert ran.out.count("LR304") == 2  # the problem, and the last line
    assert "and so for 4 other names" in ran.out
