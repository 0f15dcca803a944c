"""What each source contributes, and under which target name: sources of a few tensors, without
files and without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llava_remap.checkpoint import Checkpoint, LoraPair
from llava_remap.rewrite import compile_rules
from llava_remap.routing import Routed, Routes, SourceName, main_names, route
from llava_remap.rulefile import load_rule_file
from tests.planning.conftest import checkpoint

Routing = Callable[..., Routes]

HEAD = """
schema: 1
name: test
summary: for tests of the routes
version: 1.0.0
target: {class: LlavaForConditionalGeneration}
prepare:
  - {id: wrapper, from: 'module.{rest...}', to: '{rest}'}
names:
  - {id: tower, from: 'model.tower.{rest...}', to: 'vision_tower.{rest}'}
  - {id: own-tower, from: 'tower.{rest...}', to: 'vision_tower.{rest}'}
  - {id: body, from: 'model.{rest...}', to: 'language_model.{rest}'}
  - {id: gone, from: '{rest...}.inv_freq', drop: a buffer that the target computes}
"""
TOWER = "sources: {model: {}, tower: {prefix: tower., used_if_absent: 'model.tower.{rest...}'}}"
OPTIONAL_TOWER = TOWER.replace("{prefix", "{optional: true, prefix")
ADAPTER = "sources: {model: {}, adapter: {optional: true, overrides: true}}"


def one(*names: str, **named: object) -> Checkpoint:
    """A checkpoint of tensors of one number each."""
    return checkpoint(dict.fromkeys(names, (1,)), **named)  # type: ignore[arg-type]


def text_of(sources: str, folder: Path) -> Path:
    path = folder / "rules.yaml"
    path.write_text(HEAD + sources + "\n")
    return path


@pytest.fixture
def routed(tmp_path: Path) -> Routing:
    def route_all(sources: str, **checkpoints: Checkpoint) -> Routes:
        rules = load_rule_file(text_of(sources, tmp_path))
        program = compile_rules(rules, [*checkpoints["model"].catalog], {})
        return route(rules, program, checkpoints)

    return route_all


def shown(routed: tuple[Routed, ...]) -> list[tuple[str, str, str | None]]:
    return [(r.source, r.tensor.name, r.rewrite.target) for r in routed]


def test_tensors_keep_the_order_of_sources_and_of_their_catalogs(routed: Routing) -> None:
    routes = routed(
        "sources: {model: {}, more: {}}",
        more=one("model.a"),
        model=one("model.c", "model.b"),
    )
    assert shown(routes.taken) == [
        ("model", "model.c", "language_model.c"),
        ("model", "model.b", "language_model.b"),
        ("more", "model.a", "language_model.a"),
    ]


def test_a_drop_and_a_name_that_no_rule_takes_are_among_them(routed: Routing) -> None:
    routes = routed("sources: {model: {}}", model=one("a.inv_freq", "other"))
    assert shown(routes.taken) == [("model", "a.inv_freq", None), ("model", "other", None)]
    assert [r.rewrite.reason for r in routes.taken] == [
        "a buffer that the target computes",
        None,
    ]
    assert routes.produced == {}


def test_a_prefix_stands_before_any_rule_and_not_in_the_origin(routed: Routing) -> None:
    routes = routed(TOWER, model=one("model.a"), tower=one("layer.0"))
    assert shown(routes.taken)[1] == ("tower", "layer.0", "vision_tower.layer.0")
    assert routes.origin("vision_tower.layer.0") == SourceName("tower", "layer.0")
    assert routes.origin("vision_tower.layer.1") is None


def test_select_takes_names_as_prepare_leaves_them(routed: Routing) -> None:
    sources = "sources: {model: {}, more: {select: 'model.{n:int}'}}"
    more = one("module.model.0", "model.1", "model.x")
    routes = routed(sources, model=one("model.a"), more=more)
    assert shown(routes.taken)[1:] == [
        ("more", "module.model.0", "language_model.0"),
        ("more", "model.1", "language_model.1"),
    ]


def test_of_several_templates_one_is_enough(routed: Routing) -> None:
    sources = "sources: {model: {select: ['{x}.a', '{x}.b']}}"
    routes = routed(sources, model=one("model.a", "model.b", "model.c"))
    assert [r.tensor.name for r in routes.taken] == ["model.a", "model.b"]


def test_a_source_of_which_nothing_is_selected_is_told(routed: Routing) -> None:
    sources = "sources: {model: {}, more: {select: 'text.{rest...}'}}"
    routes = routed(sources, model=one("model.a"), more=one("model.b"))
    assert routes.unselected == ("more",)
    assert [r.source for r in routes.taken] == ["model"]


@pytest.mark.parametrize(
    ("sources", "model", "given", "taken", "beside", "not_given"),
    [
        (TOWER, "model.tower.x", True, ["model"], ["tower"], ()),
        (TOWER, "model.tower.x", False, ["model"], [], ()),
        (TOWER, "model.x", True, ["model", "tower"], [], ()),
        (TOWER, "model.x", False, ["model"], [], ("tower",)),
        (OPTIONAL_TOWER, "model.x", False, ["model"], [], ()),
        (TOWER, "module.model.tower.x", True, ["model"], ["tower"], ()),
    ],
    ids=["own and given", "own", "given", "neither", "neither, optional", "own, wrapped"],
)
def test_used_if_absent(
    sources: str,
    model: str,
    given: bool,
    taken: list[str],
    beside: list[str],
    not_given: tuple[str, ...],
    routed: Routing,
) -> None:
    checkpoints = {"model": one(model), **({"tower": one("x")} if given else {})}
    routes = routed(sources, **checkpoints)
    assert [r.source for r in routes.taken] == taken
    assert [r.source for r in routes.beside] == beside
    assert routes.not_given == not_given


def test_a_tower_that_a_part_brings_is_not_asked_for(routed: Routing) -> None:
    """And one that is given is still taken: the part may have trained some of it alone."""
    sources = f"{TOWER[:-1]}, part: {{overrides: true}}}}"
    part = one("model.tower.x")
    assert routed(sources, model=one("model.a"), part=part).not_given == ()
    routes = routed(sources, model=one("model.a"), part=part, tower=one("x", "y"))
    assert routes.beside == ()
    assert {t: routes.origin(t) for t in routes.produced} == {
        "language_model.a": SourceName("model", "model.a"),
        "vision_tower.x": SourceName("part", "model.tower.x"),
        "vision_tower.y": SourceName("tower", "y"),
    }


def test_what_overrides_replaces_by_target_name_and_stands_behind_the_others(
    routed: Routing,
) -> None:
    sources = "sources: {model: {}, part: {overrides: true}, more: {}}"
    routes = routed(
        sources,
        model=one("model.a", "model.b"),
        part=one("module.model.b", "model.d"),
        more=one("model.d"),
    )
    assert [(r.source, r.rewrite.target) for r in routes.taken] == [
        ("model", "language_model.a"),
        ("part", "language_model.b"),
        ("part", "language_model.d"),
    ]
    assert [(r.origin, by) for r, by in routes.replaced] == [
        (SourceName("model", "model.b"), "part"),
        (SourceName("more", "model.d"), "part"),
    ]


def test_of_two_that_override_the_later_wins(routed: Routing) -> None:
    sources = "sources: {model: {}, first: {overrides: true}, second: {overrides: true}}"
    every = {name: one("model.a") for name in ("second", "first", "model")}
    routes = routed(sources, **every)
    assert [r.source for r in routes.taken] == ["second"]
    assert [(r.source, by) for r, by in routes.replaced] == [
        ("model", "first"),
        ("first", "second"),
    ]


def test_names_without_a_target_replace_nothing(routed: Routing) -> None:
    """A drop, and a name that no rule takes, have no target in common."""
    routes = routed(ADAPTER, model=one("x.inv_freq", "other"), adapter=one("x.inv_freq", "other"))
    assert [r.source for r in routes.taken] == ["model", "model", "adapter", "adapter"]
    assert routes.replaced == ()


def test_two_sources_for_one_target_are_both_taken(routed: Routing) -> None:
    """The plan refuses them; `produced` has the first."""
    sources = "sources: {model: {}, more: {}}"
    routes = routed(sources, model=one("model.a"), more=one("model.a"))
    assert [r.source for r in routes.taken] == ["model", "more"]
    assert routes.origin("language_model.a") == SourceName("model", "model.a")


def pair(base: str, scale: float | None = 2.0) -> LoraPair:
    return LoraPair(base, f"wrap.{base}.A", f"wrap.{base}.B", scale)


def test_the_matrices_of_pairs_are_no_tensors_and_their_bases_name_goes_through_the_rules(
    routed: Routing,
) -> None:
    pairs = (pair("model.a"), pair("other", None))
    matrices = {name: (1, 1) for p in pairs for name in (p.a, p.b)}
    adapter = checkpoint({**matrices, "model.b": (1,)}, "adapter", pairs)
    routes = routed(ADAPTER, model=one("model.a", "model.b"), adapter=adapter)
    assert [(p.source, p.rewrite.target, p.scale) for p in routes.pairs] == [
        ("adapter", "language_model.a", 2.0),
        ("adapter", None, None),
    ]
    assert routes.pairs[0].origins == (
        SourceName("adapter", "wrap.model.a.A"),
        SourceName("adapter", "wrap.model.a.B"),
    )
    assert [(r.source, r.tensor.name) for r in routes.taken] == [
        ("model", "model.a"),
        ("adapter", "model.b"),
    ]


def test_a_prefix_stands_before_the_base_of_a_pair(routed: Routing) -> None:
    sources = "sources: {model: {}, adapter: {overrides: true, prefix: model.}}"
    lora = pair("a")
    adapter = checkpoint({lora.a: (1, 1), lora.b: (1, 1)}, "adapter", (lora,))
    routes = routed(sources, model=one("model.a"), adapter=adapter)
    assert [p.rewrite.target for p in routes.pairs] == ["language_model.a"]


@pytest.mark.parametrize("given", [True, False])
def test_a_source_for_its_tokenizer_gives_no_tensors(given: bool, routed: Routing) -> None:
    sources = "sources: {model: {}, text: {use: [tokenizer]}}"
    checkpoints: Mapping[str, Checkpoint] = {"text": one("model.b")} if given else {}
    routes = routed(sources, model=one("model.a"), **checkpoints)
    assert [r.source for r in routes.taken] == ["model"]
    assert (routes.not_given, routes.unselected) == (() if given else ("text",), ())


def test_an_adapter_may_have_the_names_of_another_layout_than_its_base(tmp_path: Path) -> None:
    """transformers 4.52's names beside classic ones; by the shipped layouts."""
    classic, module = "language_model.model.norm.weight", "model.language_model.norm.weight"
    text = "layouts: [classic, module-4.52]\n" + ADAPTER
    path = tmp_path / "rules.yaml"
    path.write_text(HEAD.partition("prepare:")[0] + text + "\n")
    rules = load_rule_file(path)
    checkpoints = {"model": one(classic), "adapter": one(module)}
    routes = route(rules, compile_rules(rules, [classic], {}), checkpoints)
    assert shown(routes.taken) == [("adapter", module, classic)]
    assert [(r.origin, by) for r, by in routes.replaced] == [
        (SourceName("model", classic), "adapter")
    ]


def test_conditions_speak_of_the_first_source_and_of_those_that_override_it(tmp_path: Path) -> None:
    sources = (
        "sources: {model: {select: 'model.{rest...}'}, tower: {}, "
        "part: {overrides: true, prefix: model.}}"
    )
    rules = load_rule_file(text_of(sources, tmp_path))
    checkpoints = {"part": one("p"), "tower": one("model.t"), "model": one("model.a", "x")}
    assert main_names(rules, checkpoints) == ("model.a", "model.p")
