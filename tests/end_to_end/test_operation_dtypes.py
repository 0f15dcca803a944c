"""Tensors of several dtypes that an operation puts together: torch casts them one by one and joins
them, and the job gives the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_remap import apply, load_model, plan, revert, verify
from llava_remap.core.problem import RemapError
from llava_remap.jobs.apply import Dtype
from tests.conftest import CLIP, Run, Tensors, with_own_digest
from tests.end_to_end.test_peft import Tree, furthest, trained
from tests.fused import HEAD, changed_checkpoint, sources, weights

#: Along rows, along columns, taking turns, and a table that gets new rows.
RULES = (
    HEAD
    + """\
  - {id: up, from: ['{m...}.up_top.{p}', '{m...}.up_bottom.{p}'], to: '{m}.up_proj.{p}', \
how: {concat: 0}}
  - {id: down, from: ['{m...}.down_left.{p}', '{m...}.down_right.{p}'], to: '{m}.down_proj.{p}', \
how: {concat: 1}}
  - {id: gate, from: ['{m...}.gate_even.{p}', '{m...}.gate_odd.{p}'], to: '{m}.gate_proj.{p}', \
how: {view: ['*', 2], stack: 1}}
  - {id: table, from: [model.embed_first, model.embed_rest], \
to: language_model.model.embed_tokens.weight, how: {concat: 0}}
"""
)
DTYPES: dict[Dtype, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def divide(tensors: Tensors) -> None:
    """The one half is F32, with digits that F16 lacks, the other F16; the table has a half in
    BF16.
    """
    draw = torch.Generator().manual_seed(5)

    def two(name: str, halves: tuple[torch.Tensor, ...], first: str, second: str) -> None:
        one, other = halves
        tensors[first] = one.float() + torch.randn(one.shape, generator=draw) * 1e-5
        tensors[second] = other.half()
        del tensors[name]

    for name in list(tensors):
        if "up_proj" in name:
            names = (name.replace("up_proj", f"up_{part}") for part in ("top", "bottom"))
            two(name, tensors[name].chunk(2), *names)
        elif "down_proj" in name:
            names = (name.replace("down_proj", f"down_{part}") for part in ("left", "right"))
            two(name, tensors[name].chunk(2, dim=1), *names)
        elif "gate_proj" in name:
            names = (name.replace("gate_proj", f"gate_{part}") for part in ("even", "odd"))
            two(name, (tensors[name][::2], tensors[name][1::2]), *names)
    table = tensors.pop("model.embed_tokens.weight")
    tensors["model.embed_first"] = table[:100].float() * 1.0001
    tensors["model.embed_rest"] = table[100:].bfloat16()


def joined(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """What torch makes of it."""
    made = {}
    for name, value in tensors.items():
        other = {}
        if "up_top" in name:
            other = {"up_proj": (name.replace("top", "bottom"), "cat0")}
        elif "down_left" in name:
            other = {"down_proj": (name.replace("left", "right"), "cat1")}
        elif "gate_even" in name:
            other = {"gate_proj": (name.replace("even", "odd"), "turns")}
        for module, (second, how) in other.items():
            halves = [value.to(dtype), tensors[second].to(dtype)]
            new = ".".join((*name.split(".")[:-2], module, "weight"))
            made[f"language_model.{new}"] = (
                torch.stack(halves, 1).flatten(0, 1)
                if how == "turns"
                else torch.cat(halves, int(how[-1]))
            )
    return made


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULES)
    return changed_checkpoint(tmp_path / "mixed", divide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_is_cast_before_they_are_put_together(mixed: Path, dtype: Dtype) -> None:
    apply("rules.yaml", sources(mixed), "made", dtype=dtype, verify="full")
    stored, made = load_file(mixed / "model.safetensors"), weights(Path("made"))
    wanted = joined(stored, DTYPES[dtype])
    assert len(wanted) == 3 * 2
    assert all(torch.equal(made[name], value) for name, value in wanted.items())
    assert verify("made", against=sources(mixed)).problems == ()
    loaded = load_model("rules.yaml", sources(mixed), dtype=dtype).state_dict()
    model = load_model_of("made").state_dict()
    assert all(torch.equal(loaded[name], model[name]) for name in model)


def load_model_of(folder: str) -> torch.nn.Module:
    from transformers import AutoModelForImageTextToText

    found: torch.nn.Module = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_new_rows_are_made_from_the_stored_values(
    mixed: Path, dtype: Dtype, tmp_path: Path
) -> None:
    """As from a table that held all values before."""

    def held(tensors: Tensors) -> None:
        divide(tensors)
        halves = [tensors.pop(f"model.embed_{half}").float() for half in ("first", "rest")]
        tensors["model.embed_tokens.weight"] = torch.cat(halves)

    whole = changed_checkpoint(tmp_path / "whole", held)
    apply("rules.yaml", sources(mixed), "made", dtype=dtype)
    apply("rules.yaml", sources(whole), "wanted", dtype=dtype)
    name = "language_model.model.embed_tokens.weight"
    found, wanted = weights(Path("made"))[name], weights(Path("wanted"))[name]
    assert len(wanted) > len(load_file(whole / "model.safetensors")["model.embed_tokens.weight"])
    assert torch.equal(found, wanted)


def test_without_a_dtype_the_job_is_refused(mixed: Path, run: Run) -> None:
    with pytest.raises(RemapError) as refused:
        apply("rules.yaml", sources(mixed), "made")
    assert not Path("made").exists()
    told = {problem.code: problem for problem in refused.value.problems}
    assert told.keys() == {"LR322"}
    first = "`model.layers.0.mlp.up_top.weight` is F32 and `model.layers.0.mlp.up_bottom.weight`"
    causes = [problem.cause for problem in refused.value.problems]
    assert any(first in cause for cause in causes), causes
    assert "--dtype" in told["LR322"].fix
    assert told["LR322"].place is not None
    with pytest.raises(RemapError):
        load_model("rules.yaml", sources(mixed))


def test_integers_are_not_cast(mixed: Path) -> None:
    tensors = load_file(mixed / "model.safetensors")
    name = "model.layers.0.mlp.up_bottom.weight"
    from safetensors.torch import save_file

    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, mixed / "model.safetensors", {"format": "pt"})
    found = plan("rules.yaml", sources(mixed), dtype="float32", dry_run=True).plan.problems
    assert [problem.code for problem in found] == ["LR322"]
    assert found[0].names == ("model.layers.0.mlp.up_top.weight",)


def test_the_plan_says_what_is_cast(mixed: Path, run: Run) -> None:
    job = plan("rules.yaml", sources(mixed), dtype="float16", dry_run=True)
    mapped = {entry.target: entry for entry in job.plan.mapped}
    up = mapped["language_model.model.layers.0.mlp.up_proj.weight"].to_json()
    top = {"source": "model", "name": "model.layers.0.mlp.up_top.weight"}
    assert up["then"] == [{"cast": {"stored": "F32", "of": [top]}}]
    given = ("--source", mixed, "--source", f"vision_tower={CLIP}", "--dtype", "float16")
    told = run("apply", "rules.yaml", *given, "--dry-run", "--report", "page.html").out
    assert "F32 + F16 → F16: 6 tensors, rounded to nearest" in told
    assert "F32 + F16 → F16" in Path("page.html").read_text()
    checked = {origin for c in job.plan.value_checks if c.check == "range" for origin in c.from_}
    assert {origin.name for origin in checked} >= {top["name"], "model.embed_rest"}
    assert not any("bottom" in origin.name for origin in checked)


def test_what_every_dtype_holds_comes_back(mixed: Path) -> None:
    apply("rules.yaml", sources(mixed), "made", dtype="float32")
    revert("made", "back")
    stored, back = load_file(mixed / "model.safetensors"), weights(Path("back/model"))
    assert back.keys() == stored.keys()
    for name, value in stored.items():
        assert back[name].dtype == value.dtype
        assert torch.equal(back[name], value)


def test_only_what_was_rounded_is_lost(mixed: Path) -> None:
    apply("rules.yaml", sources(mixed), "made", dtype="float16")
    with pytest.raises(RemapError) as refused:
        revert("made", "back")
    [problem] = refused.value.problems
    parts = ("up_top", "down_left", "gate_even", "embed_first", "embed_rest")
    stored = load_file(mixed / "model.safetensors")
    lost = {name for name in problem.names if "vision" not in name}  # the tower is F32 all over
    assert lost == {name for name in stored if any(part in name for part in parts)}


def test_a_value_that_does_not_fit_is_told(mixed: Path) -> None:
    tensors = load_file(mixed / "model.safetensors")
    from safetensors.torch import save_file

    tensors["model.embed_rest"][3, 4] = 1e30
    save_file(tensors, mixed / "model.safetensors", {"format": "pt"})
    with pytest.raises(RemapError) as refused:
        apply("rules.yaml", sources(mixed), "made", dtype="float16")
    assert [problem.code for problem in refused.value.problems] == ["LR406"]
    assert refused.value.problems[0].names == ("model.embed_rest",)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_pair_on_one_of_them_is_rounded_once(mixed: Path) -> None:
    stored = load_file(mixed / "model.safetensors")
    _, exact = trained(Tree(stored), Path("adapter"), r=4, target_modules=["up_top", "gate_odd"])
    given = {**sources(mixed), "adapter": "adapter"}
    apply("rules.yaml", given, "made", dtype="bfloat16", verify="full")
    made = weights(Path("made"))
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        up = made[f"language_model.{mlp}.up_proj.weight"]
        gate = made[f"language_model.{mlp}.gate_proj.weight"]
        assert furthest(up.chunk(2)[0], exact[f"{mlp}.up_top.weight"]) < 0.51
        assert torch.equal(up.chunk(2)[1], stored[f"{mlp}.up_bottom.weight"].bfloat16())
        assert furthest(gate[1::2], exact[f"{mlp}.gate_odd.weight"]) < 0.51
        assert torch.equal(gate[::2], stored[f"{mlp}.gate_even.weight"].bfloat16())
    assert verify("made", against=given).problems == ()


def test_a_record_with_other_casts_is_refused(mixed: Path, run: Run) -> None:
    apply("rules.yaml", sources(mixed), "made", dtype="float32")
    path = Path("made/llava_remap.json")
    record = json.loads(path.read_text())
    [entry] = [e for e in record["plan"]["mapped"] if "0.mlp.up_proj" in e["target"]]
    [cast] = entry["then"]
    bottom = cast["cast"]["of"]
    for then in (
        [{"cast": {"stored": "F16", "of": bottom * 2}}],
        [{"cast": {"stored": "F16", "of": [{"source": "model", "name": "other"}]}}],
        [cast, {"cast": {"stored": "BF16", "of": bottom}}],
        [{"cast": {"stored": "I8", "of": bottom}}],
        [{"cast": {"stored": "F32", "of": bottom}}],
    ):
        path.write_text(with_own_digest({**record, "plan": _with(record["plan"], entry, then)}))
        ran = run("verify", "made")
        assert (ran.code, "LR113" in ran.err) == (3, True), (then, ran.out)
    given = (f"--against={mixed}", f"--against=vision_tower={CLIP}")
    for then in ([], [{"cast": {"stored": "F16"}}]):  # sound, but of other sources
        path.write_text(with_own_digest({**record, "plan": _with(record["plan"], entry, then)}))
        ran = run("verify", "made", *given)
        assert (ran.code, "up_proj" in ran.out) == (1, True), (ran.out, ran.err)


def _with(plan: dict[str, object], entry: dict[str, object], then: object) -> dict[str, object]:
    mapped = plan["mapped"]
    assert isinstance(mapped, list)
    return {**plan, "mapped": [{**e, "then": then} if e is entry else e for e in mapped]}
