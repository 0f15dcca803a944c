"""`rules import`: conversions of transformers as rule files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_remap.authoring.conversion_rules import InexpressibleError, conversion_rules
from llava_remap.authoring.import_rules import imported
from llava_remap.target_model import Conversion, Example, Moved, Step
from tests.conftest import Run

STACK, CONCAT = Step("stack", (0,)), Step("concat", (1,))


def rename(old: str, new: str) -> Moved:
    return Moved(((old,),), (new,))


def spelt(moved: list[Moved], *, save: bool = False) -> list[tuple[str, str | None]]:
    return [(rule.match, rule.to) for rule in conversion_rules(moved, save=save).names]


# --- names


def test_layers_that_move_alike_are_one_rule() -> None:
    moved = [rename(f"h.{n}.ln.weight", f"layers.{n}.norm.weight") for n in range(3)]
    assert spelt(moved) == [("h.{n:int}.ln.weight", "layers.{n}.norm.weight")]
    assert spelt(moved, save=True) == [("layers.{n:int}.norm.weight", "h.{n}.ln.weight")]


def test_a_number_that_moves_by_another_one_is_computed() -> None:
    moved = [rename(f"queries.{n}", f"layers.{n + 1}.query") for n in range(4)]
    assert spelt(moved) == [("queries.{n:int}", "layers.{n+1}.query")]
    apart = [rename(f"a.{n}.w", f"b.{3 * n}.w") for n in range(4)]
    assert spelt(apart) == [("a.{n:int}.w", "b.{3*n}.w")]


def test_two_numbers_dont_make_a_calculation() -> None:
    moved = [rename("mlp.0.w", "mlp.1.w"), rename("mlp.2.w", "mlp.3.w")]
    assert spelt(moved) == [("mlp.0.w", "mlp.1.w"), ("mlp.2.w", "mlp.3.w")]


def test_a_number_that_nothing_follows_stays_a_number() -> None:
    moved = [
        rename(f"b.{n}.f.{at}.w", f"l.{n}.g.{to}.w")
        for n in range(3)
        for at, to in ((0, 1), (2, 5), (4, 6))
    ]
    assert sorted(spelt(moved)) == [
        ("b.{n:int}.f.0.w", "l.{n}.g.1.w"),
        ("b.{n:int}.f.2.w", "l.{n}.g.5.w"),
        ("b.{n:int}.f.4.w", "l.{n}.g.6.w"),
    ]


def test_numbers_at_the_ends_of_segments_count_if_they_make_a_list() -> None:
    moved = [rename(f"norm_{n}.w", f"layers.{n}.norm.w") for n in range(3)]
    assert spelt(moved) == [("norm_{n:int}.w", "layers.{n}.norm.w")]
    two = [rename(f"linear_{n}.w", f"fc{n}.w") for n in (1, 2)]
    assert ("linear_1.w", "fc1.w") in spelt(two)


def test_numbers_that_change_places() -> None:
    moved = [rename(f"a.{n}.b.{m}.w", f"c.{m}.d.{n}.w") for n in range(2) for m in range(3)]
    assert spelt(moved) == [("a.{n:int}.b.{m:int}.w", "c.{m}.d.{n}.w")]


def test_no_rule_takes_a_new_name() -> None:
    moved = [rename("emb_ln.w", "emb.norm.w"), *(rename(f"emb.{x}.w", f"emb.{x}.w") for x in "ab")]
    assert not [match for match, _ in spelt(moved) if match == "emb.{rest...}"]


# --- operations


def test_a_list_has_a_field_of_its_own() -> None:
    sources = tuple(tuple(f"m.0.e.{e}.{w}" for e in range(4)) for w in ("w1", "w3"))
    [operation] = conversion_rules(
        [Moved(sources, ("m.0.gate_up",), (STACK, CONCAT))], save=False
    ).tensors
    assert operation.from_ == ["m.0.e.{e:each}.w1", "m.0.e.{e:each}.w3"]
    assert operation.how == {"concat": 1, "stack": 0}


def test_the_way_back_of_an_operation_divides() -> None:
    sources = tuple(tuple(f"m.0.e.{e}.{w}" for e in range(4)) for w in ("w1", "w3"))
    [operation] = conversion_rules(
        [Moved(sources, ("m.0.gate_up",), (STACK, CONCAT))], save=True
    ).tensors
    assert operation.to == ["m.0.e.{e:each}.w1", "m.0.e.{e:each}.w3"]
    assert operation.how == {"split": 1, "unstack": 0}


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((Step("other", name="Fuse"),), "no operation like `Fuse`"),
        ((Step("swap", (0, 1)), Step("swap", (1, 2))), "divide or reorder axes"),
        ((CONCAT,), "aren't one operation"),
    ],
)
def test_what_the_language_cant_say(steps: tuple[Step, ...], why: str) -> None:
    with pytest.raises(InexpressibleError, match=why):
        conversion_rules([Moved((("a.0.w",),), ("b.w", "c.w"), steps)], save=False)


def test_a_list_with_a_gap_is_refused() -> None:
    with pytest.raises(InexpressibleError, match="numbered from 0"):
        conversion_rules([Moved((("e.0.w", "e.2.w"),), ("w",), (STACK,))], save=False)


def test_a_list_of_one_tensor_is_tested_by_its_names() -> None:
    example = Example((([0], [1]),), ([[0], [1]],), {})
    moved = Moved((("m.e.0.w",),), ("m.e.w",), (STACK,), example)
    text = imported(Conversion("X", "5", (moved,), ()), "x").text
    assert "- {from: m.e.0.w, to: m.e.w}" in text


# --- the command


@pytest.mark.parametrize("direction", ["load", "save"])
def test_an_imported_file_passes_its_tests_and_lint(direction: str, run: Run) -> None:
    ran = run(
        "rules", "import", "--model-type", "nomic_bert", "--direction", direction, "-o", "made.yaml"
    )
    assert ran.code == 0
    assert "10 rules of names and 1 operation" in ran.err
    assert ", 0 failed" in run("rules", "test", "made.yaml").out
    assert "reversible" in run("rules", "lint", "made.yaml").out


def test_without_an_output_the_file_is_printed(run: Run) -> None:
    ran = run("rules", "import", "--model-type", "nomic_bert")
    Path("made.yaml").write_text(ran.out)
    assert run("rules", "test", "made.yaml").code == 0


def test_tests_of_operations_have_numbers_that_can_be_wrong(run: Run) -> None:
    text = run("rules", "import", "--model-type", "nomic_bert").out
    old, new = "[[[0], [1]], [[2], [3]], [[4], [5]]]", "[[[0], [2]], [[1], [3]], [[4], [5]]]"
    assert old in text
    Path("wrong.yaml").write_text(text.replace(old, new))
    ran = run("rules", "test", "wrong.yaml")
    assert ran.code == 1
    assert "1 failed" in ran.out


def test_a_config_shows_names_that_the_default_has_not(run: Run) -> None:
    plain = run("rules", "import", "--model-type", "deepseek_v3").out
    assert "experts.{e:each}" in plain
    Path("config.json").write_text(json.dumps({"num_hidden_layers": 4, "first_k_dense_replace": 4}))
    ran = run("rules", "import", "--model-type", "deepseek_v3", "--config", "config.json")
    assert ran.code == 2  # a dense model, which has nothing to convert
    assert "converts nothing for DeepseekV3ForCausalLM" in ran.err


def test_conversions_without_a_name_are_told(run: Run) -> None:
    ran = run("rules", "import", "--model-type", "inkling_mm_model")
    assert "#   mlp.w2_md.weight → mlp.down_proj.weight" in ran.out
    assert "2 conversions of the type took no name" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--model-type", "mixtrl"), 2, "Did you mean mixtral"),
        (("--model-type", "llama"), 2, "converts nothing for LlamaForCausalLM"),
        (("--model-type", "timm_wrapper"), 3, "timm library"),
        (("--model-type", "nomic_bert", "--config", "none.json"), 3, "none.json"),
        (("--model-type", "nomic_bert", "--output", "there.yaml"), 4, "nothing is overwritten"),
        (("--model-type", "nomic_bert", "--direction", "both"), 2, "direction"),
    ],
)
def test_what_cant_be_imported(arguments: tuple[str, ...], code: int, said: str, run: Run) -> None:
    Path("there.yaml").write_text("mine")
    ran = run("rules", "import", *arguments)
    assert ran.code == code
    assert said in ran.err
    assert Path("there.yaml").read_text() == "mine"
