"""Rules from names and shapes: every manifest with an official mapping, and names and shapes
that are made to mislead.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_remap.rewrite.infer import Inference, Shape, infer, rule_line, suggest_rules
from tests.conftest import DATA
from tools.bench.infer import Measured, measure, run_rule, target_of

EXPECTED = sorted(path.stem for path in (DATA / "expected").glob("*.json"))


def mapping(found: Inference, names: Iterable[str]) -> dict[str, str | None]:
    """What the rules make of names: the new name, `(dropped)`, or None where none takes it."""
    result: dict[str, str | None] = {}
    for name in names:
        outcomes = [run_rule(rule, name) for rule in found.rules]
        taken = next((target or "(dropped)" for matched, target in outcomes if matched), None)
        result[name] = taken
    return result


def layers(count: int, names: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name.replace("#", str(n)): shape for name, shape in names.items() for n in range(count)}


@pytest.mark.parametrize("name", EXPECTED)
def test_as_the_official_converter_maps(name: str) -> None:
    found: Measured = measure(name)
    assert found.right == found.names
    assert found.questions == 0
    assert found.rules <= 15


def test_there_are_fifteen_of_them() -> None:
    assert len(EXPECTED) == 15


@pytest.mark.parametrize(
    "name", ["video-llava-7b", "llava-interleave-qwen-0.5b.released", "vip-llava-7b"]
)
def test_the_order_of_names_is_nothing(name: str) -> None:
    source, target, tied = target_of(name)
    lines = [rule_line(rule) for rule in infer(source, target, tied=tied, drop=True).rules]
    for seed in range(3):
        shuffled, wanted = list(source.items()), list(target.items())
        random.Random(seed).shuffle(shuffled)
        random.Random(seed + 9).shuffle(wanted)
        assert [
            rule_line(rule)
            for rule in infer(dict(shuffled), dict(wanted), tied=tied, drop=True).rules
        ] == lines


def test_names_decide_between_equal_shapes() -> None:
    """Query, key and value have one shape; in the target they stand in another order and under
    other names.
    """
    source = layers(2, {f"h.#.attn.{w}.weight": (8, 8) for w in ("wv", "wq", "wo", "wk")})
    target = layers(
        2, {f"model.layers.#.self_attn.{w}_proj.weight": (8, 8) for w in ("q", "k", "v", "o")}
    )
    got = mapping(infer(source, target), source)
    for ours, theirs in (("wq", "q"), ("wk", "k"), ("wv", "v"), ("wo", "o")):
        assert got[f"h.1.attn.{ours}.weight"] == f"model.layers.1.self_attn.{theirs}_proj.weight"


def test_swapped_names_are_believed() -> None:
    source = {"a.q_proj.weight": (8, 8), "a.k_proj.weight": (8, 8)}
    target = {"b.k_proj.weight": (8, 8), "b.q_proj.weight": (8, 8)}
    assert mapping(infer(source, target), source) == {
        "a.q_proj.weight": "b.q_proj.weight", "a.k_proj.weight": "b.k_proj.weight",
    }  # fmt: skip


def test_what_nothing_tells_apart_is_asked() -> None:
    source = {"adapter.0.weight": (8, 8), "adapter.1.weight": (8, 8), "keep.norm.weight": (8,)}
    target = {
        "projector.linear_1.weight": (8, 8),
        "projector.linear_2.weight": (8, 8),
        "text.norm.weight": (8,),
    }
    found = infer(source, target)
    assert [question.source.folded for question in found.questions] == [
        "adapter.0.weight",
        "adapter.1.weight",
    ]
    assert all(len(question.candidates) == 2 for question in found.questions)
    assert mapping(found, source) == {
        "adapter.0.weight": None,
        "adapter.1.weight": None,
        "keep.norm.weight": "text.norm.weight",
    }
    assert found.questions or found.unplaced or found.missing


def test_an_answer_settles_what_hangs_on_it() -> None:
    source = {
        f"adapter.{n}.{p}": shape
        for n in (0, 1)
        for p, shape in (("weight", (8, 8)), ("bias", (8,)))
    }
    target = {
        f"projector.linear_{n}.{p}": shape
        for n in (1, 2)
        for p, shape in (("weight", (8, 8)), ("bias", (8,)))
    }
    asked = infer(source, target).questions
    assert {question.source.folded for question in asked} == set(source)
    found = infer(
        source, target, answers={("adapter", "0", "weight"): ("projector", "linear_2", "weight")}
    )
    assert (found.questions, found.unplaced, found.missing) == ((), (), ())
    assert mapping(found, ["adapter.0.bias", "adapter.1.bias"]) == {
        "adapter.0.bias": "projector.linear_2.bias", "adapter.1.bias": "projector.linear_1.bias",
    }  # fmt: skip


def test_gate_and_up_are_not_guessed() -> None:
    """`w1` is the gate in one code and something else in another."""
    source = layers(
        3,
        {"h.#.ffn.w1.weight": (16, 8), "h.#.ffn.w3.weight": (16, 8), "h.#.ffn.w2.weight": (8, 16)},
    )
    target = layers(
        3,
        {
            f"layers.#.mlp.{w}_proj.weight": s
            for w, s in (("gate", (16, 8)), ("up", (16, 8)), ("down", (8, 16)))
        },
    )
    found = infer(source, target)
    assert [question.source.folded for question in found.questions] == [
        "h.{0..2}.ffn.w1.weight",
        "h.{0..2}.ffn.w3.weight",
    ]
    assert mapping(found, source)["h.2.ffn.w2.weight"] == "layers.2.mlp.down_proj.weight"


def test_numbers_that_start_elsewhere_are_not_the_same() -> None:
    source = {"p.fc0.weight": (8, 8), "p.fc1.weight": (8, 8)}
    target = {"p.linear_1.weight": (8, 8), "p.linear_2.weight": (8, 8)}
    assert len(infer(source, target).questions) == 2
    source = {"p.fc1.weight": (8, 8), "p.fc2.weight": (8, 8)}
    assert mapping(infer(source, target), source)["p.fc2.weight"] == "p.linear_2.weight"


def test_a_vector_is_not_placed_by_its_length() -> None:
    found = infer({"image_newline": (8,)}, {"projector.out.bias": (8,)})
    assert [q.source.folded for q in found.questions] == ["image_newline"]


def test_words_of_both_sides_are_not_matched_by_elimination() -> None:
    both = {"a.v_proj.weight": (8, 8), "a.k_proj.bias": (4,), "a.q_proj.bias": (5,)}
    source = {**both, "a.q_proj.weight": (8, 8)}
    target = {
        name.replace("a.", "b."): shape
        for name, shape in {**both, "a.k_proj.weight": (8, 8)}.items()
    }
    found = infer(source, target)
    assert mapping(found, source)["a.q_proj.weight"] != "b.k_proj.weight"


def test_a_leaf_renamed_in_every_layer_is_one_rule() -> None:
    names = {
        "#.attn.q.weight": (8, 8),
        "#.attn.k.weight": (8, 8),
        "#.ln_a.weight": (8,),
        "#.ln_a.bias": (9,),
        "#.mlp.up.weight": (4, 8),
    }
    source = layers(5, {f"enc.{name}": shape for name, shape in names.items()})
    target = layers(
        5,
        {
            f"tower.layers.{name}".replace("ln_a", "layernorm"): shape
            for name, shape in names.items()
        },
    )
    found = infer(source, target)
    assert [(rule.match, rule.to) for rule in found.rules] == [
        ("enc.{n:int}.ln_a.{p}", "tower.layers.{n}.layernorm.{p}"),
        ("enc.{n:int}.{rest...}", "tower.layers.{n}.{rest}"),
    ]


def test_no_rule_claims_what_it_never_saw() -> None:
    source, target, _ = target_of("llava-v1.5-7b")
    found = infer(source, target)
    for name in (
        "model.image_newline",
        "model.mm_projector.1.weight",
        "model.new.weight",
        "other.layers.0.x.weight",
    ):
        assert mapping(found, [name]) == {name: None}


@pytest.mark.parametrize("hidden", [64, 32])
def test_small_models_in_which_shapes_coincide(hidden: int) -> None:
    """Two layers everywhere, and with 32 tower and language model have the same sizes."""
    attention = {f"#.self_attn.{w}_proj.weight": (hidden, hidden) for w in "qkv"}
    text = {
        **attention,
        "#.self_attn.o_proj.weight": (hidden, hidden),
        "#.input_layernorm.weight": (hidden,),
    }
    tower = {f"#.self_attn.{w}_proj.weight": (32, 32) for w in ("q", "k", "v", "out")} | {
        "#.layer_norm1.weight": (32,)
    }
    source = layers(2, {f"model.layers.{n}": s for n, s in text.items()})
    source |= layers(
        2,
        {
            f"model.vision_tower.vision_tower.vision_model.encoder.layers.{n}": s
            for n, s in tower.items()
        },
    )
    source |= {"model.norm.weight": (hidden,), "model.image_newline": (hidden,)}
    source |= {"model.vision_tower.vision_tower.vision_model.post_layernorm.weight": (32,)}
    wanted = {name: name.removeprefix("model.vision_tower.") for name in source if "tower" in name}
    wanted |= {name: f"language_model.{name}" for name in source if name not in wanted}
    wanted["model.image_newline"] = "image_newline"
    found = infer(source, {wanted[name]: shape for name, shape in source.items()})
    assert mapping(found, source) == wanted
    assert len(found.rules) <= 5


def test_a_variant_that_nobody_has_seen() -> None:
    """Names of other conventions; where they leave two things open, exactly those are asked."""
    text = {
        "attn.wq.weight": "self_attn.q_proj.weight", "attn.wk.weight": "self_attn.k_proj.weight",
        "attn.wv.weight": "self_attn.v_proj.weight", "attn.wo.weight": "self_attn.o_proj.weight",
        "ffn.down.weight": "mlp.down_proj.weight", "ffn.up.weight": "mlp.up_proj.weight",
        "ffn.gate.weight": "mlp.gate_proj.weight",
    }  # fmt: skip
    shapes: dict[str, Shape] = {
        "ffn.down.weight": (64, 112),
        "ffn.up.weight": (112, 64),
        "ffn.gate.weight": (112, 64),
    }
    pairs = {
        f"transformer.h.{n}.{a}": f"language_model.model.layers.{n}.{b}"
        for n in range(4)
        for a, b in text.items()
    }
    shape: Shape
    sizes = {name: shapes.get(name.split(".", 3)[3], (64, 64)) for name in pairs}
    for ours, theirs, shape in (
        ("transformer.wte.weight", "language_model.model.embed_tokens.weight", (320, 64)),
        ("transformer.ln_f.weight", "language_model.model.norm.weight", (64,)),
        ("output.weight", "language_model.lm_head.weight", (320, 64)),
        ("adapter.fc1.weight", "multi_modal_projector.linear_1.weight", (64, 32)),
        ("adapter.fc1.bias", "multi_modal_projector.linear_1.bias", (64,)),
        ("adapter.fc2.weight", "multi_modal_projector.linear_2.weight", (64, 64)),
        ("adapter.fc2.bias", "multi_modal_projector.linear_2.bias", (64,)),
        (
            "visual.conv1.weight",
            "vision_tower.vision_model.embeddings.patch_embedding.weight",
            (32, 3, 14, 14),
        ),
        (
            "visual.positional_embedding",
            "vision_tower.vision_model.embeddings.position_embedding.weight",
            (5, 32),
        ),
    ):
        pairs[ours], sizes[ours] = theirs, shape
    for n in range(3):
        for ours, theirs, shape in (
            ("attn.q.weight", "self_attn.q_proj.weight", (32, 32)),
            ("attn.k.weight", "self_attn.k_proj.weight", (32, 32)),
            ("norm1.weight", "layer_norm1.weight", (32,)),
            ("norm2.weight", "layer_norm2.weight", (32,)),
            ("mlp.fc1.weight", "mlp.fc1.weight", (96, 32)), ("mlp.fc1.bias", "mlp.fc1.bias", (96,)),
        ):  # fmt: skip
            name = f"visual.blocks.{n}.{ours}"
            pairs[name], sizes[name] = (
                f"vision_tower.vision_model.encoder.layers.{n}.{theirs}",
                shape,
            )
    found = infer(sizes, {pairs[name]: shape for name, shape in sizes.items()})
    assert mapping(found, sizes) == pairs
    assert len(found.rules) <= 25


def test_strange_names_get_rules_that_take_them() -> None:
    source = {
        "a b.weight": (3, 4),
        "x{y}.weight": (5, 6),
        "über.größe": (7, 8),
        "p..q.weight": (9, 9),
        "#.weight": (2, 3),
    }
    target = {"t." + name: shape for name, shape in source.items()}
    found = infer(source, target)
    assert mapping(found, source) == {name: "t." + name for name in source}


def test_more_rows_for_new_tokens_are_allowed() -> None:
    source = {
        "model.embed_tokens.weight": (320, 64),
        "lm_head.weight": (320, 64),
        "proj.weight": (32, 64),
    }
    target = {
        "lm.embed_tokens.weight": (384, 64),
        "lm.lm_head.weight": (384, 64),
        "projector.weight": (32, 64),
    }
    found = infer(source, target)
    assert (found.questions, found.unplaced, found.missing) == ((), (), ())
    assert mapping(found, source)["model.embed_tokens.weight"] == "lm.embed_tokens.weight"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((257, 1024), (577, 1024)), ((2048, 1024), (4096, 1024)), ((384, 64), (320, 64))],
)
def test_other_tables_have_to_be_as_long(ours: Shape, theirs: Shape) -> None:
    """A table of positions, a linear layer, fewer rows: that is another size of model, not room
    for new tokens.
    """
    found = infer({"a.table.weight": ours}, {"b.table.weight": theirs})
    assert found.rules == ()
    assert [group.folded for group in found.unplaced] == ["a.table.weight"]


def test_nothing_is_dropped_while_something_is_missing() -> None:
    source = {"a.norm.weight": (8,), "a.extra": (2, 2, 2)}
    found = infer(source, {"b.norm.weight": (8,), "b.pos": (9, 9)})
    assert (
        found.dropped,
        [g.folded for g in found.unplaced],
        [g.folded for g in found.missing],
    ) == ((), ["a.extra"], ["b.pos"])
    assert [g.folded for g in infer(source, {"b.norm.weight": (8,)}, drop=True).dropped] == [
        "a.extra"
    ]


def test_suggestions_leave_alone_what_rules_take_already() -> None:
    unmapped = {"model.fuse.a.weight": (4, 8), "model.fuse.b.weight": (8, 4)}
    missing = {"fusion.a.weight": (4, 8), "fusion.b.weight": (8, 4)}
    assert suggest_rules(unmapped, missing) == (
        "- {id: fusion, from: 'model.fuse.{rest...}', to: 'fusion.{rest}'}",
    )
    lines = suggest_rules(unmapped, missing, untouched=["model.fuse.c.weight"])
    assert [line.split("'")[1] for line in lines] == ["model.fuse.a.weight", "model.fuse.b.weight"]
    assert suggest_rules({"x": (3,)}, {"y.z": (4,)}) == ()


WORDS = st.sampled_from(
    ["a", "b", "q_proj", "k_proj", "norm", "0", "1", "2", "model", "weight", "bias"]
)
NAMES = st.lists(WORDS, min_size=1, max_size=5).map(".".join)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(NAMES, st.sampled_from([(4,), (8,), (4, 8), (8, 8)]), min_size=1, max_size=12),
    st.data(),
)
def test_rules_do_what_was_decided(source: dict[str, Shape], data: st.DataObject) -> None:
    """Whatever the names are: every name becomes what its group was matched with, or is left
    alone.
    """
    targets = data.draw(st.lists(NAMES, min_size=len(source), max_size=len(source), unique=True))
    found = infer(source, dict(zip(targets, source.values(), strict=True)))
    decided: dict[str, str | None] = {}
    for pair in found.matches:
        decided |= zip(pair.source.names, pair.target.names, strict=True)
    decided |= {name: "(dropped)" for group in found.dropped for name in group.names}
    got = mapping(found, source)
    assert got == {name: decided.get(name) for name in source}
    assert len({rule.id for rule in found.rules}) == len(found.rules)


def test_the_room_is_pure() -> None:
    code = "import sys, llava_remap.rewrite.infer\n"
    code += (
        "print([m for m in ('torch', 'transformers', 'rich', 'llava_remap.planning') if m in "
        "sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
