"""Finding a post-load rule and validating its options."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from llava_remap.core.codes import Exit
from llava_remap.core.problem import RemapError
from llava_remap.post_load.plugins.expand_embeddings import ExpandEmbeddings
from llava_remap.post_load.run import GROUP, load_post_load_rule


def test_the_shipped_rule_and_its_defaults() -> None:
    rule = load_post_load_rule("expand_embeddings", {})
    assert isinstance(rule, ExpandEmbeddings)
    assert (rule.pad_to_multiple_of, rule.init, rule.scale, rule.seed) == (
        64,
        "multivariate_normal",
        1e-5,
        0,
    )


def test_options_are_taken() -> None:
    rule = load_post_load_rule(
        "expand_embeddings", {"pad_to_multiple_of": 8, "scale": 0, "seed": 2**64 - 1}
    )
    assert isinstance(rule, ExpandEmbeddings)
    assert (rule.pad_to_multiple_of, rule.scale, rule.seed) == (8, 0, 2**64 - 1)


@pytest.mark.parametrize(
    "use",
    [
        "expand_embedding",
        "",
        "llava_remap.post_load.plugins.expand_embeddings:ExpandEmbeddings",
        "os",
    ],
)
def test_only_what_is_installed(use: str) -> None:
    with pytest.raises(RemapError) as caught:
        load_post_load_rule(use, {})
    (problem,) = caught.value.problems
    assert problem.code == "LR212"
    assert (
        problem.cause == f"`post_load` uses `{use}`; installed: expand_embeddings, identity_layer."
    )
    assert caught.value.exit is Exit.USAGE


def test_a_plugin_that_is_installed_meanwhile_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook: the refusal says what to install, and the same process goes on."""
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RemapError, match="LR212"):
        load_post_load_rule("meanwhile", {})
    package = tmp_path / "meanwhile-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: meanwhile\nVersion: 1\n")
    place = "llava_remap.post_load.plugins.expand_embeddings:ExpandEmbeddings"
    (package / "entry_points.txt").write_text(f"[{GROUP}]\nmeanwhile = {place}\n")
    importlib.invalidate_caches()
    assert isinstance(load_post_load_rule("meanwhile", {}), ExpandEmbeddings)
    monkeypatch.undo()
    test_only_what_is_installed("meanwhile")


WRONG: list[tuple[str, Any]] = [
    ("pad_to_multiple_of", 0),
    ("pad_to_multiple_of", -64),
    ("pad_to_multiple_of", 6.5),
    ("pad_to_multiple_of", None),
    ("pad_to_multiple_of", "many"),
    ("pad_to_multiple_of", True),
    ("init", "average"),
    ("init", None),
    ("scale", -1e-5),
    ("scale", "small"),
    ("scale", float("nan")),
    ("scale", float("inf")),
    ("scale", "inf"),
    ("std", -0.1),
    ("std", float("nan")),
    ("std", 1e4),
    ("statistics", "lm_head"),
    ("token", ""),
    ("token", 2),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 0.5),
    ("sead", 0),
    ("model_config", {}),
]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_wrong_options(option: str, value: Any) -> None:
    with pytest.raises(RemapError) as caught:
        load_post_load_rule("expand_embeddings", {option: value})
    (problem,) = caught.value.problems
    assert problem.code == "LR212"
    assert problem.cause.startswith(f"options of `expand_embeddings`: `{option}`: ")
    assert "\n" not in problem.cause


def test_all_wrong_options_are_told_at_once() -> None:
    with pytest.raises(RemapError) as caught:
        load_post_load_rule("expand_embeddings", {"seed": -1, "scale": -1.0})
    (problem,) = caught.value.problems
    assert "`scale`: " in problem.cause
    assert "`seed`: " in problem.cause


IDLE = [
    ("mean", {"token": "</s>"}, "token", "copy"),
    ("mean", {"seed": 0}, "seed", "multivariate_normal and normal"),
    ("zeros", {"scale": 1e-5}, "scale", "multivariate_normal"),
    ("zeros", {"statistics": "own"}, "statistics", "multivariate_normal and mean"),
    ("normal", {"scale": 1e-5}, "scale", "multivariate_normal"),
    ("multivariate_normal", {"std": 0.02}, "std", "normal"),
    ("copy", {"token": "</s>", "seed": 1}, "seed", "multivariate_normal and normal"),
]


@pytest.mark.parametrize(("init", "options", "idle", "ways"), IDLE)
def test_options_that_would_do_nothing(
    init: str, options: dict[str, Any], idle: str, ways: str
) -> None:
    """Also where what is given is the default: whoever writes it expects something of it."""
    with pytest.raises(RemapError) as caught:
        load_post_load_rule("expand_embeddings", {"init": init, **options})
    (problem,) = caught.value.problems
    assert problem.code == "LR212"
    wanted = (
        f"options of `expand_embeddings`: `{idle}` does nothing with `init: {init}`, only "
        f"with {ways}."
    )
    assert problem.cause == wanted


def test_copy_needs_a_token() -> None:
    with pytest.raises(RemapError) as caught:
        load_post_load_rule("expand_embeddings", {"init": "copy"})
    assert "`init: copy` needs `token`" in caught.value.problems[0].cause


@pytest.mark.parametrize(
    "options",
    [
        {"init": "multivariate_normal", "statistics": "own", "scale": 0.5, "seed": 3},
        {"init": "mean", "statistics": "own"},
        {"init": "zeros", "pad_to_multiple_of": 8},
        {"init": "normal", "std": 0.01, "seed": 3},
        {"init": "copy", "token": "</s>"},
    ],
    ids=lambda options: str(options["init"]),
)
def test_every_way_with_all_its_options(options: dict[str, Any]) -> None:
    rule = load_post_load_rule("expand_embeddings", options)
    assert isinstance(rule, ExpandEmbeddings)
    assert rule.model_dump(include=set(options)) == options
