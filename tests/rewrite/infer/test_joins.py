"""Operations from shapes and names: inferred where one fits alone, and else not at all. The sizes
are those of genuine models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from llava_remap.rewrite.infer import Segments, Shape, infer, suggest_operations
from llava_remap.rewrite.infer.text import Frame, rule_file

Shapes = dict[str, Shape]


def layers(template: Mapping[str, Shape], count: int = 2) -> Shapes:
    return {
        name.replace("#", str(n)): shape for n in range(count) for name, shape in template.items()
    }


def lines(source: Mapping[str, Shape], target: Mapping[str, Shape]) -> list[str]:
    return [line for line, _ in infer(source, target).operation_lines]


OURS, THEIRS = "model.layers.#.", "language_model.model.layers.#."
#: microsoft/Phi-3-mini-4k-instruct: 32 heads of 96; 8192 in the MLP.
PHI3 = layers(
    {
        f"{OURS}self_attn.qkv_proj.weight": (9216, 3072),
        f"{OURS}self_attn.o_proj.weight": (3072, 3072),
        f"{OURS}mlp.gate_up_proj.weight": (16384, 3072),
        f"{OURS}mlp.down_proj.weight": (3072, 8192),
        f"{OURS}input_layernorm.weight": (3072,),
    }
)
LLAMA = layers(
    {
        **{f"{THEIRS}self_attn.{kind}_proj.weight": (3072, 3072) for kind in "qkvo"},
        f"{THEIRS}mlp.gate_proj.weight": (8192, 3072),
        f"{THEIRS}mlp.up_proj.weight": (8192, 3072),
        f"{THEIRS}mlp.down_proj.weight": (3072, 8192),
        f"{THEIRS}input_layernorm.weight": (3072,),
    }
)


def test_phi3_is_divided() -> None:
    found = infer(PHI3, LLAMA)
    assert (found.missing, found.unplaced, found.questions) == ((), (), ())
    assert [line for line, _ in found.operation_lines] == [
        "- {id: gate-up-proj, from: '{m...}.gate_up_proj.weight', "
        "to: ['{m}.gate_proj.weight', '{m}.up_proj.weight'], how: {split: 0}}",
        "- {id: qkv-proj, from: '{m...}.qkv_proj.weight', "
        "to: ['{m}.q_proj.weight', '{m}.k_proj.weight', '{m}.v_proj.weight'], how: {split: 0}}",
    ]
    [rule] = found.rules
    assert (rule.match, rule.to) == (
        "model.layers.{n:int}.{rest...}",
        f"{THEIRS[:-2]}{{n}}.{{rest}}",
    )


def test_the_same_is_put_together() -> None:
    found = infer(LLAMA, PHI3)
    assert (found.missing, found.unplaced, found.questions) == ((), (), ())
    assert [one.kind for _, one in found.operation_lines] == ["concat", "concat"]
    assert (
        "from: ['{m...}.q_proj.weight', '{m...}.k_proj.weight', '{m...}.v_proj.weight']"
        in (found.operation_lines[1][0])
    )


@pytest.mark.parametrize(
    ("fused", "parts", "rows", "is_found"),
    [
        ("qkv", ["q", "k", "v"], (4096, 1024, 1024), True),
        ("wqkv", ["q_proj", "k_proj", "v_proj"], (4096, 1024, 1024), True),
        ("Wqkv", ["q_proj", "k_proj", "v_proj"], (64, 64, 64), True),
        ("query_key_value", ["q_proj", "k_proj", "v_proj"], (64, 64, 64), True),
        ("qkv", ["query", "key", "value"], (64, 64, 64), True),
        ("kv_proj", ["k_proj", "v_proj"], (64, 64), True),
        ("gate_up", ["gate_proj", "up_proj"], (64, 64), True),
        ("up_gate", ["up_proj", "gate_proj"], (64, 64), True),
        # The order isn't told, or the sizes don't add up.
        ("c_attn", ["q_proj", "k_proj", "v_proj"], (64, 64, 64), False),
        ("fused", ["gate_proj", "up_proj"], (64, 64), False),
        ("qkv", ["q", "k", "v"], (4096, 1024, 1000), False),
        ("qkv", ["q", "k"], (4096, 2048), False),
    ],
)
def test_names_say_which_and_in_which_order(
    fused: str, parts: list[str], rows: tuple[int, ...], is_found: bool
) -> None:
    whole = 6144 if rows[0] == 4096 else sum(rows)
    source = layers({f"{OURS}attn.{fused}.weight": (whole, 128), f"{OURS}attn.o.weight": (128, 7)})
    target = layers(
        {
            **{
                f"{THEIRS}attn.{part}.weight": (size, 128)
                for part, size in zip(reversed(parts), reversed(rows), strict=True)
            },
            f"{THEIRS}attn.o.weight": (128, 7),
        }
    )
    found = lines(source, target)
    assert len(found) == is_found
    if is_found:
        assert "[" + ", ".join(f"'{{m}}.{part}.weight'" for part in parts) + "]" in found[0]
    else:
        assert infer(source, target).missing


def test_sizes_that_add_up_without_names_are_told() -> None:
    source = layers({f"{OURS}mlp.both.weight": (22, 8), f"{OURS}mlp.down.weight": (8, 11)})
    target = layers(
        {
            f"{THEIRS}mlp.gate_proj.weight": (11, 8),
            f"{THEIRS}mlp.up_proj.weight": (11, 8),
            f"{THEIRS}mlp.down.weight": (8, 11),
        }
    )
    found = infer(source, target)
    assert found.operation_lines == []
    assert found.adding_up == [
        "model.layers.{0..1}.mlp.both.weight [22, 8] is as large as "
        "language_model.model.layers.{0..1}.mlp.gate_proj.weight and "
        "language_model.model.layers.{0..1}.mlp.up_proj.weight together, along axis 0. Names don't "
        "show whether they belong together, and in which order"
    ]
    assert "unsure, so left out: model.layers" in rule_file(Frame("x", "y", "z"), found)
    assert infer(target, source).adding_up[0].startswith("model.layers.{0..1}.mlp.both.weight")
    assert infer(PHI3, LLAMA).adding_up == []


def test_weight_and_bias_are_one_line() -> None:
    source = layers({f"{OURS}attn.qkv.{p}": s for p, s in (("weight", (24, 8)), ("bias", (24,)))})
    target = layers(
        {
            f"{THEIRS}attn.{kind}.{p}": s
            for kind in "qkv"
            for p, s in (("weight", (8, 8)), ("bias", (8,)))
        }
    )
    [line] = lines(source, target)
    assert "from: '{m...}.qkv.{p}', to: ['{m}.q.{p}', '{m}.k.{p}', '{m}.v.{p}']" in line


def test_in_proj_weight_of_a_tower() -> None:
    """OpenAI's CLIP ViT-L/14: width 1024."""
    block, layer = (
        "visual.transformer.resblocks.#.attn.",
        "vision_model.encoder.layers.#.self_attn.",
    )
    sizes = (("weight", (1024, 1024)), ("bias", (1024,)))
    source = layers(
        {
            f"{block}in_proj_weight": (3072, 1024),
            f"{block}in_proj_bias": (3072,),
            **{f"{block}out_proj.{p}": s for p, s in sizes},
        }
    )
    target = layers({f"{layer}{k}_proj.{p}": s for k in ("q", "k", "v", "out") for p, s in sizes})
    found = infer(source, target)
    assert (found.missing, found.unplaced, found.questions) == ((), (), ())
    assert {line.split("from: ")[1].split(",")[0] for line, _ in found.operation_lines} == {
        "'{m...}.in_proj_weight'",
        "'{m...}.in_proj_bias'",
    }


def experts(count: int, sizes: Mapping[str, Shape]) -> tuple[Shapes, Shapes]:
    """Experts stacked in a tensor, and each by itself."""
    stacked = layers({f"{OURS}moe.experts.{k}": (count, *s) for k, s in sizes.items()})
    single = {
        f"{THEIRS.replace('#', str(n))}mlp.experts.{e}.{k}.weight": s
        for n in range(2)
        for e in range(count)
        for k, s in sizes.items()
    }
    return stacked, single


#: Mixtral-8x7B: 8 experts, 4096 and 14336.
MIXTRAL: Shapes = {"w1": (14336, 4096), "w2": (4096, 14336), "w3": (14336, 4096)}


def test_experts_are_unstacked_and_stacked() -> None:
    stacked, single = experts(8, MIXTRAL)
    assert lines(stacked, single) == [
        f"- {{id: {k}, from: '{{m...}}.{k}', to: '{{m}}.{{e:each}}.{k}.weight', "
        "how: {unstack: 0}}"
        for k in MIXTRAL
    ]
    assert lines(single, stacked) == [
        f"- {{id: {k}, from: '{{m...}}.{{e:each}}.{k}.weight', to: '{{m}}.{k}', how: {{stack: 0}}}}"
        for k in MIXTRAL
    ]


def test_gates_and_ups_of_experts_become_one_tensor_and_two() -> None:
    """Qwen3-MoE's sizes, as transformers has them in memory and on disk."""
    fused = layers(
        {
            f"{OURS}mlp.experts.gate_up_proj": (8, 1536, 2048),
            f"{OURS}mlp.experts.down_proj": (8, 2048, 768),
        }
    )
    _, single = experts(
        8, {"gate_proj": (768, 2048), "up_proj": (768, 2048), "down_proj": (2048, 768)}
    )
    assert lines(fused, single) == [
        "- {id: down-proj, from: '{m...}.down_proj', to: '{m}.{e:each}.down_proj.weight', "
        "how: {unstack: 0}}",
        "- {id: gate-up-proj, from: '{m...}.gate_up_proj', to: "
        "['{m}.{e:each}.gate_proj.weight', '{m}.{e:each}.up_proj.weight'], "
        "how: {unstack: 0, split: 1}}",
    ]
    assert "how: {stack: 0, concat: 1}" in lines(single, fused)[1]
    found = infer(single, fused)
    assert (found.missing, found.unplaced, found.questions) == ((), (), ())


def test_lists_that_only_a_shape_tells_apart_are_left_open() -> None:
    stacked, single = experts(8, MIXTRAL)
    other = {name.replace("w1", "first").replace("w3", "second"): s for name, s in single.items()}
    assert [line.split(",")[0] for line in lines(stacked, other)] == ["- {id: w2"]
    assert infer(stacked, other).missing


def test_a_list_with_another_number_of_tensors_isnt_stacked() -> None:
    stacked, single = experts(8, MIXTRAL)
    fewer = {name: shape for name, shape in single.items() if ".7." not in name}
    assert lines(stacked, fewer) == []


def test_a_suggestion_has_the_names_as_they_are() -> None:
    unmapped = {name: shape for name, shape in PHI3.items() if "qkv" in name}
    missing = {n: s for n, s in LLAMA.items() if "attn" in n and ".o_proj" not in n}
    assert suggest_operations(unmapped, missing) == (
        "- {id: qkv-proj, from: 'model.layers.{n:int}.self_attn.qkv_proj.weight', "
        "to: ['language_model.model.layers.{n}.self_attn.q_proj.weight', "
        "'language_model.model.layers.{n}.self_attn.k_proj.weight', "
        "'language_model.model.layers.{n}.self_attn.v_proj.weight'], how: {split: 0}}",
    )
    assert suggest_operations(unmapped, {}) == suggest_operations({}, missing) == ()


def test_a_stack_is_suggested() -> None:
    stacked, single = experts(4, {"w2": (8, 16)})
    [line] = suggest_operations(single, stacked)
    assert line == (
        "- {id: w2, from: 'language_model.model.layers.{n:int}.mlp.experts.{e:each}.w2.weight', "
        "to: 'model.layers.{n}.moe.experts.w2', how: {stack: 0}}"
    )


def test_another_tensor_of_the_same_name_isnt_taken() -> None:
    """The template names the module where another tensor ends in the same segments."""
    source: dict[str, Any] = {**PHI3, "tower.qkv_proj.weight": (5, 5)}
    target: dict[str, Any] = {**LLAMA, "vision.qkv_proj.weight": (5, 5)}
    found = lines(source, target)
    assert any(f"'{THEIRS[:-2]}{{n:int}}.self_attn.qkv_proj.weight'" in line for line in found)


#: openai-community/gpt2: width 768, Conv1D everywhere.
BLOCK, CONV = "transformer.h.#.", "language_model.transformer.h.#."
GPT2 = {
    "attn.c_attn.weight": (768, 2304),
    "attn.c_proj.weight": (768, 768),
    "mlp.c_fc.weight": (768, 3072),
    "mlp.c_proj.weight": (3072, 768),
    "ln_1.weight": (768,),
}
LINEAR = {name: shape[::-1] for name, shape in GPT2.items()}


def test_conv1d_weights_are_turned_and_a_square_one_is_asked_about() -> None:
    source, target = (
        layers({f"{prefix}{name}": shape for name, shape in sizes.items()})
        for prefix, sizes in ((BLOCK, GPT2), (CONV, LINEAR))
    )
    found = infer(source, target)
    written = [line for line, _ in found.operation_lines]
    turned = "how: {axes: [1, 0]}}"
    assert written[:2] == [
        f"- {{id: {name}, from: '{{m...}}.{module}.weight', to: '{{m}}.{module}.weight', {turned}"
        for name, module in (("c-attn", "c_attn"), ("c-fc", "c_fc"))
    ]
    # Not `{m...}`, which would take the square one too.
    mlp = "language_model.transformer.h.{n}.mlp.c_proj.weight"
    named = mlp.replace("{n}", "{n:int}")
    assert written[2:] == [f"- {{id: c-proj, from: '{named}', to: '{mlp}', {turned}"]
    [told] = found.adding_up
    assert told.startswith("transformer.h.{0..1}.attn.c_proj.weight [768, 768] is square")
    assert "how: {axes: [1, 0]}" in told
    assert [group.names[0] for group in found.missing] == [
        CONV.replace("#", "0") + "attn.c_proj.weight"
    ]
    square = ("transformer", "h", "#.", "attn", "c_proj", "weight")
    asked: dict[Segments, Segments] = {square: ("language_model", *square)}
    told_so = infer(source, target, answers=asked)
    assert (told_so.missing, told_so.unplaced, told_so.adding_up) == ((), (), [])


def test_square_matrices_alone_are_taken_as_they_are() -> None:
    source = layers({f"{BLOCK}attn.c_proj.weight": (768, 768)})
    found = infer(source, layers({f"{CONV}attn.c_proj.weight": (768, 768)}))
    assert (found.missing, found.operations) == ((), ())


@pytest.mark.parametrize(
    ("whole", "part", "how"),
    [
        ((192, 64), (64, 64), "{split: 0}"),
        ((144, 64), (48, 64), "{split: 0}"),
        ((64, 144), (48, 64), "{axes: [1, 0], split: 0}"),
        # Side by side, or below one another and turned: squares don't tell.
        ((64, 192), (64, 64), ""),
    ],
)
def test_a_fused_matrix_may_be_transposed(whole: Shape, part: Shape, how: str) -> None:
    source = layers({f"{OURS}attn.qkv.weight": whole, f"{OURS}attn.o.weight": (64, 5)})
    target = layers(
        {
            **{f"{THEIRS}attn.{kind}.weight": part for kind in "qkv"},
            f"{THEIRS}attn.o.weight": (64, 5),
        }
    )
    found = infer(source, target)
    assert [one.how for one in found.operations] == [how] * bool(how)
    if not how:
        [told] = found.adding_up
        assert "along axis 1 or, transposed, along axis 0. Names and sizes don't show" in told
    back = infer(target, source)
    assert [one.how for one in back.operations] == [how.replace("split", "concat")] * bool(how)


def test_experts_whose_matrices_are_transposed() -> None:
    """As Llama 4 and gpt-oss have them: [experts, inputs, outputs]."""
    stacked, single = experts(4, {"down_proj": (24, 16)})
    turned = {name: (shape[0], shape[2], shape[1]) for name, shape in stacked.items()}
    assert [line.split("how: ")[1] for line in lines(turned, single)] == [
        "{axes: [0, 2, 1], unstack: 0}}"
    ]
    assert [line.split("how: ")[1] for line in lines(single, turned)] == [
        "{axes: [0, 2, 1], stack: 0}}"
    ]
