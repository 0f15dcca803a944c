"""An adapter trained on fused and turned matrices: PEFT merges it there, torch divides the merged
matrices, and the job gives the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap import apply, load_model, plan, revert, verify
from llava_remap.core.problem import RemapError
from tests.conftest import CLIP, Tensors, with_own_digest
from tests.end_to_end.test_peft import DIGITS, Tree, furthest, trained
from tests.fused import PLAIN, RULES, fused, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MODULES = ["wqkv", "gate_up", "down_proj", "o_proj"]


def divided(tensors: Tensors, heads: int) -> Tensors:
    """What `fused` fused, by torch; names that aren't fused stay."""
    made: Tensors = {}
    for name, value in tensors.items():
        if "wqkv" in name:
            groups = value.view(heads, 3, -1, value.shape[1])
            for number, kind in enumerate("qkv"):
                made[name.replace("wqkv", f"{kind}_proj")] = groups[:, number].flatten(0, 1)
        elif "gate_up" in name:
            for number, kind in enumerate(("gate", "up")):
                made[name.replace("gate_up", f"{kind}_proj")] = value[number::2]
        elif "down_proj" in name:
            made[name] = value.T
        elif "o_proj" in name:
            pairs = value.view(heads, -1, 2, value.shape[1])
            made[name] = pairs.transpose(1, 2).reshape(value.shape)
        else:
            made[name] = value
    return made


class Base:
    """A fused checkpoint in a dtype, an adapter for it, and what they make."""

    def __init__(self, folder: Path, dtype: torch.dtype, modules: list[str]) -> None:
        shutil.copytree(PLAIN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        self.folder = folder
        self.heads = json.loads((folder / "config.json").read_text())["num_attention_heads"]
        plain = {
            name: value.to(dtype) for name, value in weights(PLAIN).items() if "inv" not in name
        }
        self.tensors = fused(plain, self.heads)
        save_file(self.tensors, folder / "model.safetensors", {"format": "pt"})
        _, exact = trained(
            Tree(self.tensors), Path("adapter"), r=4, lora_alpha=6, target_modules=modules
        )
        self.exact = {
            f"language_model.{name}": value.contiguous()
            for name, value in divided(exact, self.heads).items()
            if name.startswith(("model.layers.", "model.embed", "model.norm", "lm_head"))
        }

    @property
    def sources(self) -> list[str]:
        return [str(self.folder), "adapter=adapter", f"vision_tower={CLIP}"]


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
def test_pairs_follow_their_rows(dtype: torch.dtype, fused_rules: Path, tmp_path: Path) -> None:
    base = Base(tmp_path / "base", dtype, MODULES)
    apply(fused_rules, base.sources, "out", verify="full")
    found = weights(Path("out"))
    assert base.exact.keys() <= found.keys()
    merged = [name for name in base.exact if "_proj." in name]
    assert len(merged) == 7 * 2
    assert max(furthest(found[name], base.exact[name]) for name in merged) < 0.51
    untouched = {name: value for name, value in base.exact.items() if name not in merged}
    assert all(
        torch.equal(found[name][: len(value)].double(), value) for name, value in untouched.items()
    )
    assert verify("out", against=dict(_named(base.sources))).problems == ()


def _named(sources: list[str]) -> list[tuple[str, str]]:
    named = [source.partition("=") for source in sources]
    return [(name, path) if path else ("model", name) for name, _, path in named]


def test_in_another_dtype_and_other_files_the_sum_is_rounded_once(
    fused_rules: Path, tmp_path: Path
) -> None:
    base = Base(tmp_path / "base", torch.float32, MODULES)
    apply(fused_rules, base.sources, "out", dtype="bfloat16", max_shard_nbytes=20_000)
    found = weights(Path("out"))
    merged = [name for name in base.exact if "_proj." in name]
    assert max(furthest(found[name], base.exact[name]) for name in merged) < 0.51


def test_a_model_in_memory_has_the_same_sums(fused_rules: Path, tmp_path: Path) -> None:
    base = Base(tmp_path / "base", torch.float16, MODULES)
    apply(fused_rules, base.sources, "out")
    loaded = load_model(fused_rules, base.sources)
    from transformers import AutoModelForImageTextToText

    wanted = AutoModelForImageTextToText.from_pretrained("out", dtype="auto").state_dict()
    got = loaded.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_only_what_was_merged_is_lost_on_the_way_back(fused_rules: Path, tmp_path: Path) -> None:
    base = Base(tmp_path / "base", torch.float16, ["wqkv"])
    apply(fused_rules, base.sources, "out")
    with pytest.raises(RemapError) as refused:
        revert("out", "back")
    [problem] = refused.value.problems
    assert problem.code == "LR607"
    assert {*problem.names} == {name for name in base.tensors if "wqkv" in name}
    assert not Path("back").exists()


def test_a_pair_on_one_part_of_a_fused_parameter_changes_its_rows_alone(tmp_path: Path) -> None:
    """Tensors that a rule puts together, of which one has a pair."""
    folder = tmp_path / "halves"
    shutil.copytree(PLAIN, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: value for name, value in weights(PLAIN).items() if "inv" not in name}
    stored: Tensors = {}
    for name, value in tensors.items():
        if "up_proj" in name:
            top, bottom = value.chunk(2)
            stored[name.replace("up_proj", "up_top")] = top.contiguous()
            stored[name.replace("up_proj", "up_bottom")] = bottom.contiguous()
        else:
            stored[name] = value
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    path = tmp_path / "halves.yaml"
    path.write_text(
        RULES.split("tensors:")[0] + "tensors:\n"
        "  - {id: up, from: ['{m...}.up_top.{p}', '{m...}.up_bottom.{p}'], to: '{m}.up_proj.{p}',"
        " how: {concat: 0}}\n"
    )
    _, exact = trained(Tree(stored), Path("adapter"), r=4, target_modules=["up_bottom"])
    apply(path, [str(folder), "adapter=adapter", f"vision_tower={CLIP}"], "out")
    found = weights(Path("out"))
    for name in (name for name in tensors if "up_proj" in name):
        top, bottom = found[f"language_model.{name}"].chunk(2)
        assert torch.equal(top, stored[name.replace("up_proj", "up_top")])
        wanted = exact[name.replace("up_proj", "up_bottom")]
        assert 0 < furthest(bottom, wanted) < 0.51
    with pytest.raises(RemapError) as refused:
        revert("out", "back")
    [problem] = refused.value.problems
    assert {*problem.names} == {name for name in stored if "up_bottom" in name}


def exactly(found: Tensors, exact: Tensors, modules: tuple[str, ...]) -> None:
    """What PEFT merged in float64, rounded once; everything else as it was."""
    for name, wanted in exact.items():
        if "lora" in name:
            continue
        if any(f"{module}.weight" in name for module in modules):
            assert 0 <= furthest(found[name], wanted) < 0.51, name
        else:
            assert torch.equal(found[name].double(), wanted), name


@pytest.mark.parametrize("layout", ["classic", "module-5.6"])
@pytest.mark.parametrize("dtype", DIGITS, ids=str)
def test_an_adapter_of_the_converted_model(
    layout: str, dtype: torch.dtype, fused_rules: Path, tmp_path: Path
) -> None:
    """Its names and its rows are the target's, also where an operation keeps a name and reorders
    the rows or exchanges the axes.
    """
    base = Base(tmp_path / "base", dtype, ["wqkv"])
    shutil.rmtree("adapter")
    plain = base.sources[0], base.sources[2]
    apply(fused_rules, plain, "converted", layout=layout)
    before = weights(Path("converted"))
    modules = ("q_proj", "k_proj", "gate_proj", "down_proj", "o_proj", "out_proj")
    _, exact = trained(Tree(before), Path("adapter"), r=4, lora_alpha=6, target_modules=[*modules])
    apply(fused_rules, base.sources, "out", layout=layout, verify="full")
    exactly(weights(Path("out")), exact, modules)
    assert verify("out", against=dict(_named(base.sources))).problems == ()
    merged = [name for name in before if any(f"{module}.weight" in name for module in modules)]
    assert all(not torch.equal(weights(Path("out"))[name], before[name]) for name in merged)


def test_an_adapter_of_the_same_model_that_was_never_fused(
    fused_rules: Path, tmp_path: Path
) -> None:
    """The pairs of q and k change the rows of the fused matrix that become q and k."""
    base = Base(tmp_path / "base", torch.float32, ["wqkv"])
    plain = {name: value for name, value in weights(PLAIN).items() if "inv" not in name}
    plain = {name: value.float() for name, value in plain.items()}
    _, exact = trained(Tree(plain), Path("other"), r=4, target_modules=["q_proj", "k_proj"])
    sources = [str(base.folder), "adapter=other", f"vision_tower={CLIP}"]
    apply(fused_rules, sources, "out", dtype="bfloat16", max_shard_nbytes=20_000)
    found = weights(Path("out"))
    for layer in range(2):
        for kind in "qk":
            name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
            assert furthest(found[f"language_model.{name}"], exact[name]) < 0.51
        name = f"model.layers.{layer}.self_attn.v_proj.weight"
        assert torch.equal(found[f"language_model.{name}"], plain[name].bfloat16())
    loaded = load_model(fused_rules, sources, dtype="bfloat16").state_dict()
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained("out", dtype="auto").state_dict()
    assert all(torch.equal(loaded[name], model[name]) for name in model)
    assert verify("out", against=dict(_named(sources))).problems == ()


def test_the_rows_of_a_merged_parameter_are_lost_on_the_way_back(
    fused_rules: Path, tmp_path: Path
) -> None:
    base = Base(tmp_path / "base", torch.float16, ["wqkv"])
    plain = {name: value for name, value in weights(PLAIN).items() if "inv" not in name}
    trained(Tree(plain), Path("other"), r=4, target_modules=["q_proj"])
    apply(fused_rules, [str(base.folder), "adapter=other", f"vision_tower={CLIP}"], "out")
    with pytest.raises(RemapError) as refused:
        revert("out", "back")
    [problem] = refused.value.problems
    assert problem.code == "LR607"
    assert {*problem.names} == {name for name in base.tensors if "wqkv" in name}


def test_pairs_on_what_is_taken_and_on_what_is_made_are_refused(
    fused_rules: Path, tmp_path: Path
) -> None:
    base = Base(tmp_path / "base", torch.float16, ["wqkv"])
    file = Path("adapter/adapter_model.safetensors")
    pairs = load_file(file)
    made = {name.replace("wqkv", "q_proj"): value for name, value in pairs.items()}
    made |= {name: made[name].chunk(3)[0] for name in made if "lora_B" in name}
    both = {name: value.clone() for name, value in {**pairs, **made}.items()}
    save_file(both, file, {"format": "pt"})
    found = plan(fused_rules, base.sources, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR304"]
    assert {"wqkv", "q_proj"} == {name.split(".")[-3] for name in found[0].names}


def test_a_pair_of_another_shape_than_the_made_parameter_is_refused(
    fused_rules: Path, tmp_path: Path
) -> None:
    base = Base(tmp_path / "base", torch.float16, ["wqkv"])
    plain = {name: value for name, value in weights(PLAIN).items() if "inv" not in name}
    plain = {name: value[:40] if "q_proj" in name else value for name, value in plain.items()}
    trained(Tree(plain), Path("other"), r=4, target_modules=["q_proj"])
    sources = [str(base.folder), "adapter=other", f"vision_tower={CLIP}"]
    found = plan(fused_rules, sources, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR401"]
    assert "[40, 64] in the adapter, [64, 64] in the base" in str(found[0].table)


def test_a_pair_behind_an_operation_that_does_not_fit(fused_rules: Path, tmp_path: Path) -> None:
    base = Base(tmp_path / "base", torch.float16, ["wqkv"])
    plain = {name: value for name, value in weights(PLAIN).items() if "inv" not in name}
    trained(Tree(plain), Path("other"), r=4, target_modules=["q_proj"])
    fused_rules.write_text(RULES.replace("split: 1", "split: 0", 1))
    sources = [str(base.folder), "adapter=other", f"vision_tower={CLIP}"]
    found = {p.code: p for p in plan(fused_rules, sources, dry_run=True).plan.problems}
    assert found.keys() == {"LR313", "LR321"}
    assert "doesn't fit" in found["LR313"].table[0][1]


@pytest.mark.parametrize("base", ["both", "other", None])
def test_a_record_with_other_pairs_is_refused(
    base: str | None, fused_rules: Path, tmp_path: Path
) -> None:
    given = Base(tmp_path / "base", torch.float16, ["wqkv"])
    apply(fused_rules, given.sources, "out")
    path = Path("out/llava_remap.json")
    record = json.loads(path.read_text())
    [entry] = [
        e for e in record["plan"]["mapped"] if "model.layers.0.self_attn.q_proj" in e["target"]
    ]
    [step] = [step for step in entry["then"] if "add_lora" in step]
    changed = {"add_lora": {**step["add_lora"], "base": None}}
    if base == "other":
        changed["add_lora"]["base"] = {"source": "model", "name": "other"}
    entry["then"] = [step, changed] if base == "both" else [changed]
    path.write_text(with_own_digest(record))
    if base is not None:
        with pytest.raises(RemapError) as refused:
            verify("out")
        assert refused.value.problems[0].code == "LR113"
    else:  # sound, but the pair has the rows of the fused matrix
        found = verify("out", against=dict(_named(given.sources))).problems
        assert [problem.code for problem in found] == ["LR602"]


def test_a_pair_of_another_shape_than_the_fused_tensor_is_refused(
    fused_rules: Path, tmp_path: Path
) -> None:
    base = Base(tmp_path / "base", torch.float16, ["wqkv"])
    file = Path("adapter/adapter_model.safetensors")
    pairs = load_file(file)
    name = next(name for name in pairs if "lora_B" in name)
    pairs[name] = pairs[name][:16].contiguous()
    save_file(pairs, file, {"format": "pt"})
    found = plan(fused_rules, base.sources, dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR401"]
    assert found[0].names == (name,)
