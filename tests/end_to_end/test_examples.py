"""The rule files of `examples/`: short, tested, without a finding; and each converts a checkpoint
as its head says, to the tensors or the features of the plain one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap import apply
from llava_remap.authoring.in_file_tests import run_tests, untested
from llava_remap.authoring.lint import lint
from llava_remap.rulefile import load_rule_file
from tests.authoring.test_draft_operations import fused
from tests.end_to_end.test_foreign_towers import NEAR, ORIGINALS, far, llava, width_of
from tests.fused import PLAIN, same, sources, weights
from tests.text_models.matrix import TOWERS, Own, build, checkpoint

__all__ = ["fused"]

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = {path.stem: path for path in sorted(EXAMPLES.glob("*.yaml"))}


def test_what_is_there() -> None:
    assert set(FILES) == {"fused-qkv", "in-proj-tower", "stacked-experts"}


@pytest.mark.parametrize("name", FILES)
def test_an_example_is_short_and_sound(name: str) -> None:
    rules = load_rule_file(FILES[name])
    assert rules.name == name
    assert len(FILES[name].read_text().splitlines()) <= 40
    assert {result.status for result in run_tests(rules)} == {"passed"}
    assert untested(rules) == []
    assert lint(rules).findings == ()
    assert rules.text.tensors


def test_fused_matrices(fused: Path) -> None:
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply(FILES["fused-qkv"], sources(fused), "made")
    assert same(weights(Path("plain")), weights(Path("made")))


def test_stacked_experts(tmp_path: Path) -> None:
    own = build("mixtral")
    assert isinstance(own, Own), own
    source = checkpoint(own, tmp_path / "source")
    tower = f"vision_tower={TOWERS['llava-v1.5']}"
    apply("llava-v1.5", [source, tower], "plain")
    stored = load_file(source / "model.safetensors")
    made = {name: value for name, value in stored.items() if ".experts." not in name}
    for name in stored:
        if ".experts.0." in name:
            module, kind = name.removesuffix(".weight").split(".experts.0.")
            every = [
                stored[f"{module}.experts.{number}.{kind}.weight"]
                for number in range(sum(n.startswith(f"{module}.experts.") for n in stored) // 3)
            ]
            turned = [value.T for value in every] if kind == "w2" else every
            made[f"{module}.experts.{kind}"] = torch.stack(turned).contiguous()
    save_file(made, source / "model.safetensors", {"format": "pt"})
    apply(FILES["stacked-experts"], [source, tower], "made")
    assert same(weights(Path("plain")), weights(Path("made")))


#: What the tower of the example calls the parts of OpenAI's CLIP.
OWN = {
    "conv1.": "patches.", "class_embedding": "class_token", "positional_embedding": "positions",
    "ln_pre.": "norm_pre.", "ln_post.": "norm_post.", "transformer.resblocks.": "blocks.",
    ".ln_1.": ".norm1.", ".ln_2.": ".norm2.", "c_fc": "fc1", "c_proj": "fc2",
}  # fmt: skip


def test_a_tower_with_in_proj_weight(tmp_path: Path) -> None:
    """Features are those of OpenAI's own code."""
    original = ORIGINALS / "openai-clip"
    tower = {}
    for name, value in weights(original).items():
        if name.startswith("visual.") and name != "visual.proj":
            own = name.removeprefix("visual.")
            for theirs, ours in OWN.items():
                own = own.replace(theirs, ours)
            tower[f"model.vision_tower.{own}"] = value
    source = llava(tmp_path / "source", width_of(original), tower)
    apply(FILES["in-proj-tower"], [source], "out", verify="full")
    assert far("out", original) < NEAR
