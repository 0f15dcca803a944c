"""Whole jobs with tensor operations: numpy and torch fuse, permute and stack the tensors of a
genuine checkpoint, and the operations give those of the plain checkpoint back.
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
from tests.conftest import CLIP, Tensors, heavy
from tests.fused import HEAD, PLAIN, RULES, changed_checkpoint, same, sources, weights

TABLE = """\
  - id: table
    from: [model.embed_first, model.embed_rest]
    to: language_model.model.embed_tokens.weight
    how: {concat: 0}
"""


def test_fused_matrices_become_those_of_the_plain_checkpoint(
    fused_source: Path, fused_rules: Path
) -> None:
    apply("llava-v1.5", sources(PLAIN), "plain")
    result = apply(fused_rules, sources(fused_source), "made", verify="full")
    assert same(weights(Path("plain")), weights(Path("made")))
    assert verify("made", against=sources(fused_source)).problems == ()
    assert not [note for note in result.notes if note.code == "LR321"]


def test_a_table_that_is_put_together_gets_new_rows(fused_source: Path, fused_rules: Path) -> None:
    file = fused_source / "model.safetensors"
    tensors = load_file(file)
    table = tensors.pop("model.embed_tokens.weight")
    halves = {"model.embed_first": table[:100].clone(), "model.embed_rest": table[100:].clone()}
    save_file({**tensors, **halves}, file, {"format": "pt"})
    fused_rules.write_text(RULES + TABLE)
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply(fused_rules, sources(fused_source), "made", verify="full")
    assert same(weights(Path("plain")), weights(Path("made")))
    revert("made", "back")
    assert same({name: weights(Path("back/model"))[name] for name in halves}, halves)


def test_the_plan_is_the_same_in_another_layout_and_dtype(
    fused_source: Path, fused_rules: Path
) -> None:
    for options in ({"layout": "module-5.6"}, {"dtype": "float32"}, {"max_shard_nbytes": 10_000}):
        apply("llava-v1.5", sources(PLAIN), "plain", **options)
        apply(fused_rules, sources(fused_source), "made", **options)
        assert same(weights(Path("plain")), weights(Path("made"))), options
        shutil.rmtree("plain")
        shutil.rmtree("made")


def test_the_way_back_fuses_them_again(fused_source: Path, fused_rules: Path) -> None:
    apply(fused_rules, sources(fused_source), "made")
    revert("made", "back")
    original = weights(fused_source)
    restored = weights(Path("back/model"))
    buffers = {name for name in original if name.endswith("inv_freq")}
    assert buffers
    assert same(restored, {n: value for n, value in original.items() if n not in buffers})


def test_a_model_in_memory_has_the_same_tensors(fused_source: Path, fused_rules: Path) -> None:
    apply("llava-v1.5", sources(PLAIN), "plain")
    loaded = load_model(fused_rules, sources(fused_source)).state_dict()
    wanted = load_model("llava-v1.5", sources(PLAIN)).state_dict()
    assert same(loaded, wanted)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("split: 1", "split: 0", "can't be divided by 48"),
        ("axes: [1, 0]", "axes: [0, 1]", "its place in"),
        ("num_key_value_heads", "intermediate_size", "can't be divided as 112 × * × 16"),
        ("'{m}.v_proj.weight'", "'{m}.w_proj.weight'", "the model has no parameter `"),
        ("{m...}.gate_up.weight", "{m...}.gate_up", "that no source provides"),
    ],
)
def test_sizes_that_dont_add_up_are_refused(
    fused_source: Path, fused_rules: Path, old: str, new: str, why: str
) -> None:
    fused_rules.write_text(RULES.replace(old, new, 1))
    found = plan(fused_rules, sources(fused_source), dry_run=True).plan.problems
    assert any(why in problem.cause for problem in found), found
    with pytest.raises(RemapError):
        apply(fused_rules, sources(fused_source), "made")
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("text_config.groups", "`groups` isn't a key of LlavaForConditionalGeneration's config"),
        ("text_config.hidden_act", "has no whole number `text_config.hidden_act`; it says 'silu'"),
    ],
)
def test_a_key_that_the_config_lacks_is_told_at_its_place(
    fused_source: Path, fused_rules: Path, key: str, why: str
) -> None:
    fused_rules.write_text(RULES.replace("text_config.num_key_value_heads", key))
    with pytest.raises(RemapError) as refused:
        apply(fused_rules, sources(fused_source), "made")
    [problem] = refused.value.problems
    assert why in problem.cause
    assert problem.place is not None
    assert problem.place.file.endswith("fused.yaml")


def test_sizes_of_a_model_that_transformers_saved(tmp_path: Path) -> None:
    """`target: {as: source}`: the sizes are those of the source's own config."""
    apply("llava-v1.5", sources(PLAIN), "plain")
    Path("plain/llava_remap.json").unlink()
    turned = tmp_path / "turned.yaml"
    turned.write_text(
        "schema: 1\nname: turned\nversion: 1.0.0\nsummary: heads in another order\n"
        "extends: [hf-layouts]\ntensors:\n"
        "  - id: output\n    from: '{m...}.o_proj.weight'\n    to: '{m}.o_proj.weight'\n"
        "    how: {view: [heads, '*', 2], axes: [0, 2, 1]}\n"
        "    let: {heads: target.text_config.num_attention_heads}\n"
    )
    apply(turned, {"model": "plain"}, "made")
    before, after = weights(Path("plain")), weights(Path("made"))
    [name, *_] = [name for name in before if "o_proj" in name]
    value = before[name]
    heads = json.loads((PLAIN / "config.json").read_text())["num_attention_heads"]
    wanted = value.view(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
    assert torch.equal(after[name], wanted)
    assert not torch.equal(after[name], value)


def restored_as(original: Tensors, restored: Tensors) -> None:
    """Every tensor but the buffers is back; embeddings may have new rows behind the old ones."""
    wanted = {name: value for name, value in original.items() if "inv_freq" not in name}
    found = {name: value for name, value in restored.items() if "vision_tower" not in name}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name][: len(value)], value) for name, value in wanted.items())


@pytest.mark.parametrize("layout", ["classic", "module-5.6"])
def test_the_way_back_by_the_rule_file_alone(
    fused_source: Path, fused_rules: Path, layout: str
) -> None:
    apply(fused_rules, sources(fused_source), "made", layout=layout)
    Path("made/llava_remap.json").unlink()
    revert("made", "back", rules=fused_rules, verify="full")
    restored_as(weights(fused_source), weights(Path("back")))


def test_what_an_operation_turns_is_turned_back_even_if_it_is_square(
    fused_source: Path, fused_rules: Path
) -> None:
    """A name that stays and a shape that stays: only the order of rows tells the difference."""
    apply(fused_rules, sources(fused_source), "made")
    revert("made", "back", rules=fused_rules)
    name = "model.layers.0.self_attn.o_proj.weight"
    turned = weights(Path("made"))[f"language_model.{name}"]
    assert turned.shape[0] == turned.shape[1]
    back = weights(Path("back"))[name]
    assert torch.equal(back, weights(fused_source)[name])
    assert not torch.equal(back, turned)


JOINED = """\
  - {id: up, from: ['{m...}.up_top.{p}', '{m...}.up_bottom.{p}'], to: '{m}.up_proj.{p}', \
how: {concat: 0}}
"""
LISTED = """\
  - {id: rows, from: '{m...}.rows.{e:each}', to: '{m}.input_layernorm.weight', how: {stack: 0}}
"""
DROPPED = """\
  - {id: up, from: '{m...}.wide.weight', to: ['{m}.up_proj.weight', {drop: padding, size: '*'}], \
how: {split: 0}}
"""


@pytest.mark.parametrize(
    ("operation", "why"),
    [
        (JOINED, "the sizes of the tensors that it joined are unknown"),
        (DROPPED, "it drops a part (padding)"),
    ],
)
def test_what_can_not_be_taken_back_is_refused(fused_rules: Path, operation: str, why: str) -> None:
    apply("llava-v1.5", sources(PLAIN), "made")
    fused_rules.write_text(RULES.split("tensors:")[0] + "tensors:\n" + operation)
    with pytest.raises(RemapError) as refused:
        revert("made", "back", rules=fused_rules)
    [problem] = refused.value.problems
    assert problem.code == "LR321"
    assert why in problem.cause
    assert not Path("back").exists()


def test_a_list_is_taken_back_as_long_as_its_axis(fused_rules: Path) -> None:
    apply("llava-v1.5", sources(PLAIN), "made")
    fused_rules.write_text(RULES.split("tensors:")[0] + "tensors:\n" + LISTED)
    revert("made", "back", rules=fused_rules)
    found, plain = weights(Path("back")), weights(PLAIN)
    for layer in range(2):
        rows = plain[f"model.layers.{layer}.input_layernorm.weight"]
        names = [name for name in found if name.startswith(f"model.layers.{layer}.rows.")]
        assert len(names) == len(rows)
        stacked = [found[f"model.layers.{layer}.rows.{number}"] for number in range(len(rows))]
        assert torch.equal(torch.stack(stacked), rows)


def test_a_part_that_the_checkpoint_lacks_is_told(fused_source: Path, fused_rules: Path) -> None:
    apply(fused_rules, sources(fused_source), "made")
    for file in Path("made").glob("*.safetensors"):
        tensors = load_file(file)
        tensors = {name: value for name, value in tensors.items() if "0.self_attn.v" not in name}
        save_file(tensors, file, {"format": "pt"})
    Path("made/model.safetensors.index.json").unlink()
    with pytest.raises(RemapError) as refused:
        revert("made", "back", rules=fused_rules)
    told = {problem.code: problem for problem in refused.value.problems}
    assert "the checkpoint has no `language_model.model.layers.0.self_attn.v_proj.weight`" in (
        told["LR321"].cause
    )
    assert not Path("back").exists()


RESHAPED = """\
  - {id: up, from: '{m...}.up_proj.weight', to: {name: '{m}.up_proj.weight', view: [2, '*']}, \
how: {}}
  - {id: down, from: '{m...}.down_proj.weight', to: '{m}.down_proj.weight', how: {unstack: 2}}
  - id: patches
    from: '{m...}.patch_embedding.weight'
    to: '{m}.patch_embedding.weight'
    how: {axis: 1, view: [3, 14, '*']}
"""


@pytest.fixture
def reshaped(tmp_path: Path) -> dict[str, str]:
    """A matrix with a third axis, one with a last axis of size 1, and a tower whose convolution is
    the matrix of a linear layer.
    """
    (tmp_path / "reshaped.yaml").write_text(HEAD + RESHAPED)

    def reshape(tensors: Tensors) -> None:
        for name, value in tensors.items():
            if "up_proj" in name:
                tensors[name] = value.reshape(2, -1, value.shape[1])
            elif "down_proj" in name:
                tensors[name] = value[:, :, None]

    model = changed_checkpoint(tmp_path / "model", reshape)
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    [file] = tower.glob("*.safetensors")
    tensors = load_file(file)
    name = "vision_model.embeddings.patch_embedding.weight"
    tensors[name] = tensors[name].flatten(1)
    save_file(tensors, file, {"format": "pt"})
    return {"model": str(model), "vision_tower": str(tower)}


def test_a_view_makes_axes_and_takes_them(reshaped: dict[str, str]) -> None:
    apply("llava-v1.5", sources(PLAIN), "plain")
    apply("reshaped.yaml", reshaped, "made", verify="full")
    assert same(weights(Path("plain")), weights(Path("made")))
    assert verify("made", against=reshaped).problems == ()
    revert("made", "back")
    for name, folder in reshaped.items():
        stored, back = weights(Path(folder)), weights(Path("back") / name)
        assert back
        assert all(torch.equal(back[one], stored[one]) for one in back)


def test_what_a_view_made_is_taken_back_by_the_rules_alone(reshaped: dict[str, str]) -> None:
    apply("reshaped.yaml", reshaped, "made")
    Path("made/llava_remap.json").unlink()
    revert("made", "back", rules="reshaped.yaml", verify="full")
    back, stored = weights(Path("back")), weights(Path(reshaped["model"]))
    for kind in ("up_proj", "down_proj"):
        name = f"model.layers.0.mlp.{kind}.weight"
        assert torch.equal(back[name], stored[name])
    [patches] = [name for name in back if "patch_embedding" in name]
    assert back[patches].ndim == 2


def test_a_second_dry_run_asks_no_library_for_sizes(fused_source: Path, fused_rules: Path) -> None:
    command = ("apply", fused_rules, "--dry-run", f"--source={fused_source}")
    tower = f"--source=vision_tower={CLIP}"
    heavy(*command, tower)
    assert heavy(*command, tower) <= {"numpy"}
