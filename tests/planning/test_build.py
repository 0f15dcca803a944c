"""Who provides what, and everything that doesn't fit: plans of a few tensors, without files and
without torch.
"""

from __future__ import annotations

import json

from llava_remap.checkpoint import LoraPair, Tensor
from llava_remap.planning import AddLora, Cast, Mapped, Plan, PostLoad, PostLoadChange
from llava_remap.post_load import Change
from llava_remap.routing import SourceName
from tests.planning.conftest import RULES, Planned, checkpoint

BODY = {"model.a": (2, 3), "model.b": (5,)}
WANTED = {"language_model.a": (2, 3), "language_model.b": (5,)}


def origins(plan: Plan) -> dict[str, list[str]]:
    return {
        entry.target: [f"{name.source}:{name.name}" for name in entry.origins]
        for entry in plan.mapped
    }


def codes(plan: Plan) -> list[str]:
    return [problem.code for problem in plan.problems]


def test_a_rename(planned: Planned) -> None:
    plan = planned(BODY, WANTED)
    assert plan.complete
    assert origins(plan) == {
        "language_model.a": ["model:model.a"],
        "language_model.b": ["model:model.b"],
    }
    assert [(m.dtype, m.shape, m.rules, m.then) for m in plan.mapped] == [
        ("F16", (2, 3), ("names/body",), ()),
        ("F16", (5,), ("names/body",), ()),
    ]
    assert all(entry.is_renamed for entry in plan.mapped)
    assert (plan.nbytes_read, plan.nbytes_write) == (22, 22)


def test_a_drop_has_its_reason(planned: Planned) -> None:
    plan = planned({**BODY, "rotary.inv_freq": (8,)}, WANTED)
    assert plan.complete
    assert [(d.source, d.name, d.rule, d.reason) for d in plan.dropped] == [
        ("model", "rotary.inv_freq", "names/gone", "a buffer that the target computes")
    ]
    assert plan.nbytes_read == 22


def test_a_name_that_no_rule_takes(planned: Planned) -> None:
    plan = planned({**BODY, "other.weight": (7,)}, WANTED)
    assert codes(plan) == ["LR301"]
    assert [(u.name, u.shape, u.produced, u.rules) for u in plan.unmapped] == [
        ("other.weight", (7,), None, ())
    ]


def test_a_name_that_the_target_does_not_have(planned: Planned) -> None:
    plan = planned({**BODY, "model.c": (7,)}, WANTED)
    assert codes(plan) == ["LR303"]
    assert [(u.name, u.produced, u.rules) for u in plan.unmapped] == [
        ("model.c", "language_model.c", ("names/body",))
    ]


def test_a_parameter_that_no_source_has(planned: Planned) -> None:
    plan = planned(BODY, {**WANTED, "language_model.c": (7,)})
    assert "LR302" in codes(plan)
    assert [(m.target, m.shape) for m in plan.missing] == [("language_model.c", (7,))]


def test_another_shape(planned: Planned) -> None:
    plan = planned(BODY, {**WANTED, "language_model.a": (3, 2)})
    assert codes(plan) == ["LR401"]
    assert [(m.target, m.source_shape, m.target_shape) for m in plan.mismatched] == [
        ("language_model.a", (2, 3), (3, 2))
    ]


def test_two_names_for_one_parameter(planned: Planned) -> None:
    plan = planned(
        {**BODY, "model.tower.x": (4,), "tower.x": (4,)}, {**WANTED, "vision_tower.x": (4,)}
    )
    assert codes(plan) == ["LR304"]
    assert [(c.target, [name.name for name in c.from_]) for c in plan.collisions] == [
        ("vision_tower.x", ["model.tower.x", "tower.x"])
    ]
    assert "vision_tower.x" not in origins(plan)


def test_a_source_of_its_own(planned: Planned) -> None:
    sources = {"model": checkpoint(BODY), "tower": checkpoint({"x": (4,)}, "clip")}
    plan = planned(sources, {**WANTED, "vision_tower.x": (4,)})
    assert plan.complete
    assert origins(plan)["vision_tower.x"] == ["tower:x"]
    assert {name: (s.tensors, s.taken) for name, s in plan.sources.items()} == {
        "model": (2, 2),
        "tower": (1, 1),
    }
    assert [shard.tensors for shard in plan.shards] == [
        ("language_model.a", "language_model.b"),
        ("vision_tower.x",),
    ]


def test_a_source_beside_the_checkpoints_own_is_compared(planned: Planned) -> None:
    sources = {
        "model": checkpoint({**BODY, "model.tower.x": (4,)}),
        "tower": checkpoint({"x": (4,)}, "clip"),
    }
    plan = planned(sources, {**WANTED, "vision_tower.x": (4,)})
    assert plan.complete
    assert origins(plan)["vision_tower.x"] == ["model:model.tower.x"]
    assert [(v.check, v.target, v.from_) for v in plan.value_checks] == [
        (
            "compare",
            "vision_tower.x",
            (SourceName("model", "model.tower.x"), SourceName("tower", "x")),
        )
    ]
    assert [note.code for note in plan.notes] == ["LR310"]


def test_a_source_that_overrides(planned: Planned) -> None:
    sources = {"model": checkpoint(BODY), "adapter": checkpoint({"model.b": (5,)}, "adapter")}
    plan = planned(sources, WANTED)
    assert plan.complete
    assert origins(plan)["language_model.b"] == ["adapter:model.b"]
    assert [note.code for note in plan.notes] == ["LR312"]


def test_a_pair_of_an_adapter(planned: Planned) -> None:
    pair = LoraPair("model.a", "model.a.lora_A", "model.a.lora_B", 0.5)
    adapter = checkpoint({"model.a.lora_A": (1, 3), "model.a.lora_B": (2, 1)}, "adapter", (pair,))
    plan = planned({"model": checkpoint(BODY), "adapter": adapter}, WANTED)
    assert plan.complete
    entry = next(m for m in plan.mapped if m.target == "language_model.a")
    a, b = (SourceName("adapter", f"model.a.lora_{matrix}") for matrix in "AB")
    assert entry.then == (AddLora(SourceName("model", "model.a"), a, b, 1, 0.5),)
    assert origins(plan)["language_model.a"] == ["model:model.a"]
    assert [(v.check, v.from_[0].name) for v in plan.value_checks] == [
        ("finite", "model.a.lora_A"),
        ("finite", "model.a.lora_B"),
    ]
    assert plan.nbytes_read == 22 + 6 + 4


def test_a_tie_is_written_once(planned: Planned) -> None:
    sources = {"model.a": (2, 3), "lm_head.weight": (2, 3)}
    wanted = {"language_model.a": (2, 3), "lm_head.weight": (2, 3)}
    plan = planned(sources, wanted, tied={"lm_head.weight": "language_model.a"})
    assert plan.complete
    assert [m.target for m in plan.mapped] == ["language_model.a"]
    assert [(a.target, a.of, a.source) for a in plan.aliases] == [
        ("lm_head.weight", "language_model.a", SourceName("model", "lm_head.weight"))
    ]
    assert [(v.check, v.target) for v in plan.value_checks] == [("equal", "lm_head.weight")]
    assert [shard.tensors for shard in plan.shards] == [("language_model.a",)]
    assert plan.nbytes_write == 12


def test_a_tie_that_no_source_has(planned: Planned) -> None:
    wanted = {"language_model.a": (2, 3), "lm_head.weight": (2, 3)}
    plan = planned({"model.a": (2, 3)}, wanted, tied={"lm_head.weight": "language_model.a"})
    assert plan.complete
    assert plan.tied_absent == ("lm_head.weight",)


def test_rows_that_a_post_load_rule_adds(planned: Planned) -> None:
    change = PostLoadChange(
        "expand_embeddings",
        {},
        Change("language_model.a", "F16", (2, 3), (4, 3), ("language_model.a",)),
    )
    plan = planned(BODY, {**WANTED, "language_model.a": (4, 3)}, changes=(change,))
    assert plan.complete
    entry = next(m for m in plan.mapped if m.target == "language_model.a")
    assert (entry.then, entry.shape) == ((PostLoad("expand_embeddings", (2, 3)),), (4, 3))
    assert entry.shape_before == (2, 3)
    assert [(v.check, v.target) for v in plan.value_checks] == [("finite", "language_model.a")]
    assert (plan.nbytes_read, plan.nbytes_write) == (22, 34)


def test_a_tensor_that_a_post_load_rule_makes(planned: Planned) -> None:
    change = PostLoadChange(
        "identity_layer", {}, Change("language_model.c", "F16", None, (3, 3), ())
    )
    plan = planned(BODY, {**WANTED, "language_model.c": (3, 3)}, changes=(change,))
    assert plan.complete
    assert origins(plan)["language_model.c"] == []
    assert plan.shards[-1].tensors[-1] == "language_model.c"


def test_another_dtype(planned: Planned) -> None:
    sources = {
        "model.a": Tensor.of("model.a", "F32", (2, 3), None),
        "model.b": Tensor.of("model.b", "I64", (5,), None),
    }
    plan = planned(sources, WANTED, dtype="BF16")
    assert {m.target: (m.dtype, m.stored_dtype, m.then) for m in plan.mapped} == {
        "language_model.a": ("BF16", "F32", (Cast("F32"),)),
        "language_model.b": ("I64", "I64", ()),
    }
    assert [(v.check, v.target) for v in plan.value_checks] == [("range", "language_model.a")]


def test_files_of_a_size(planned: Planned) -> None:
    plan = planned(BODY, WANTED, max_shard_nbytes=12)
    assert [(shard.file, shard.tensors) for shard in plan.shards] == [
        ("model-00001-of-00002.safetensors", ("language_model.a",)),
        ("model-00002-of-00002.safetensors", ("language_model.b",)),
    ]


def test_lists_are_sorted_whatever_order_the_source_has(planned: Planned) -> None:
    plan = planned({name: BODY[name] for name in reversed(BODY)}, WANTED)
    assert [m.target for m in plan.mapped] == sorted(WANTED)
    assert plan.target_names == tuple(sorted(WANTED))


def operation(to: str, how: str) -> str:
    return RULES + f"tensors:\n  - {{id: part, from: '{{m...}}.w', to: {to}, how: {how}}}\n"


def test_the_record_tells_a_column_from_a_vector(planned: Planned) -> None:
    """The numbers of both have the same order, but the way back makes the old shape."""
    rules = operation("['{m}.v']", "{unstack: 1}")
    plan = planned({"model.w": (4, 1)}, {"language_model.v": (4,)}, rules=rules)
    [entry] = plan.mapped
    assert plan.complete
    assert not entry.is_renamed
    assert Mapped.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    assert entry.parts[0].shape == (4, 1)


def test_a_part_beside_a_dropped_one_has_two_sources(planned: Planned) -> None:
    rules = operation("['{m}.a', {drop: padding}]", "{split: 0}")
    sources = {"model.w": (4, 3), "model.a": (2, 3)}
    plan = planned(sources, {"language_model.a": (2, 3)}, rules=rules)
    assert codes(plan) == ["LR304"]


def test_a_gap_in_a_list(planned: Planned) -> None:
    rules = (
        RULES + "tensors:\n"
        "  - {id: rows, from: '{m...}.{e:each}.w', to: '{m}.w', how: {stack: 0}}\n"
    )
    sources = {"model.0.w": (3,), "model.2.w": (3,), "model.3.w": (3,)}
    [problem] = planned(sources, {"language_model.w": (4, 3)}, rules=rules).problems
    assert problem.code == "LR321"
    assert "number 1 is missing in the list of `{m...}.{e:each}.w`" in problem.cause
