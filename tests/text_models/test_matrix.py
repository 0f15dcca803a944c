"""No language model is converted into something that computes something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.compat.run import missing
from tests.original.answers import ALL_VERSIONS, INSTALLED
from tests.text_models.matrix import NEAR, Matrix, convert, everything, kinds
from tools.text_models_table import rows, written

#: Kinds of which real checkpoints are common; the table could lose one of them without anybody
#: seeing it.
COMMON = (
    "falcon", "gemma", "glm4", "gpt_neox", "llama", "mistral", "mixtral", "olmo2", "opt",
    "persimmon", "phi3", "qwen2", "qwen3",
    "qwen3_moe", "smollm3", "stablelm", "starcoder2",
)  # fmt: skip


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return everything(tmp_path_factory.mktemp("text-models"))


@pytest.mark.parametrize("kind", kinds())
def test_exact_or_refused(kind: str, matrix: Matrix) -> None:
    outcome = matrix.outcomes[kind]
    if outcome.folder is not None:
        far = matrix.far[INSTALLED][kind]
        assert isinstance(far, float), far
        assert far <= NEAR
    else:
        assert outcome.refused or outcome.untried


@pytest.mark.parametrize("kind", COMMON)
def test_common_ones_are_converted(kind: str, matrix: Matrix) -> None:
    outcome = matrix.outcomes[kind]
    assert outcome.folder is not None, outcome.refused or outcome.untried
    text = json.loads((outcome.folder / "config.json").read_text())["text_config"]
    assert text["model_type"] == kind
    assert text["architectures"][0].endswith(("ForCausalLM", "LMHeadModel"))
    assert len(outcome.changed) >= 4


@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"])
def test_other_classes(family: str, tmp_path: Path) -> None:
    """One that is none of those that LLaVA was trained on, with a head that is tied to nothing
    and other kinds of layers.
    """
    outcome = convert("qwen3", tmp_path, family)
    assert outcome.folder is not None, outcome.refused
    said = torch.load(outcome.folder.with_suffix(".pt"))
    model = AutoModelForImageTextToText.from_pretrained(
        outcome.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = model(input_ids=said["ids"], use_cache=False).logits[
            ..., : said["logits"].shape[-1]
        ]
    assert (logits - said["logits"]).abs().max() <= NEAR * said["logits"].abs().max()


def test_the_table_is_up_to_date(matrix: Matrix) -> None:
    if why := [
        reason for version in ALL_VERSIONS if version != INSTALLED and (reason := missing(version))
    ]:
        pytest.skip("\n".join(why))
    found = dict(line.split(" | ", 1) for line in written().splitlines()[2:])
    made = dict(line.split(" | ", 1) for line in rows(matrix).values())
    assert found == made, "make text-models"
