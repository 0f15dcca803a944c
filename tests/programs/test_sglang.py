"""SGLang's loader sets every parameter of the folders, through its models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.compat.checkpoints import FAMILIES, convert_family
from tests.compat.known import PADDED
from tests.programs.outcomes import EQUAL, Limit, Outcomes, explain, record
from tests.programs.run import ask
from tests.programs.twins import Twins

pytestmark = [pytest.mark.programs, pytest.mark.sglang]

#: What `--model-impl` may be; where SGLang has no class of its own, both are the same.
IMPLEMENTATIONS = ("transformers", "sglang")
LIMITS = (
    # Its own class makes a text model of the vision tower.
    Limit(
        ("llava-v1", *PADDED, "llava-interleave"),
        "'Conv2d' object has no attribute 'num_embeddings'",
        ("sglang",),
    ),
    # It takes the names of transformers' modules alone.
    Limit(
        ("video-llava",),
        "No module or parameter named 'model.image_tower.vision_model'",
    ),
)
#: What it takes instead of the last limit's names: `--layout module-5.6`.
LAYOUT = "module-5.6"
IN_LAYOUT = "video-llava-7b"


@pytest.fixture(scope="module")
def said(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("sglang")
    again = work / "out"
    convert_family(IN_LAYOUT, work / "twin", again, dtype="float32", layout=LAYOUT)
    folders = {**twins.folders, LAYOUT: again}
    asked = {
        name: {"folder": str(folder), "implementations": IMPLEMENTATIONS}
        for name, folder in folders.items()
    }
    answers: dict[str, Any] = ask("sglang", Path(__file__).with_name("ask_sglang.py"), asked, work)
    return answers


def judge(said: dict[str, Any]) -> str:
    """`EQUAL` if the loader sets all parameters to what transformers loads."""
    if "error" in said:
        return str(said["error"])
    if not said["parameters"]:
        return "no parameters"
    wrong = {kind: said[kind] for kind in ("unset", "other") if said[kind]}
    return str(wrong) if wrong else EQUAL


@pytest.fixture(scope="module")
def outcomes(said: dict[str, Any]) -> Outcomes:
    judged = {
        name: {implementation: judge(answer) for implementation, answer in of.items()}
        for name, of in said.items()
    }
    return record("sglang", judged)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_its_loader_sets_every_parameter(
    name: str, implementation: str, outcomes: Outcomes
) -> None:
    """All are NaN before, and have the values that transformers loads after."""
    assert explain(name, implementation, outcomes[name][implementation], LIMITS) is None


def test_video_llava_loads_in_the_layout_of_modules(outcomes: Outcomes) -> None:
    assert outcomes[LAYOUT] == dict.fromkeys(IMPLEMENTATIONS, EQUAL)


def test_what_is_unset_or_other_is_told() -> None:
    loaded = {"parameters": 2, "unset": [], "other": []}
    assert judge(loaded) == EQUAL
    assert "a.weight" in judge({**loaded, "unset": ["a.weight"]})
    assert "a.weight" in judge({**loaded, "other": ["a.weight"]})
    assert judge({**loaded, "parameters": 0}) != EQUAL
