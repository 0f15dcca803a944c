"""The rule files that are shipped: all load, all of their own tests pass; and how they are
found.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llava_remap.authoring.in_file_tests import run_tests
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import load_rule_file, shipped_folder, shipped_rule_files

from .written import put, refused

RULES = Path(__file__).parents[2] / "rules"
FILES = {str(path.relative_to(RULES)): path for path in sorted(RULES.rglob("*.yaml"))}
#: By another reader, so that a test lost in loading would be missed here.
TESTS = [
    (file, at, test["from"] if isinstance(test["from"], str) else ", ".join(test["from"]))
    for file, path in FILES.items()
    for at, test in enumerate(yaml.safe_load(path.read_text()).get("tests", []))
]


def test_what_is_shipped() -> None:
    assert {
        "llava-v1.5.yaml",
        "llava-interleave.yaml",
        "parts/llava.yaml",
        "layouts/classic.yaml",
    } <= set(FILES)
    assert len(TESTS) >= 30


@pytest.mark.parametrize(
    ("file", "at", "name"), TESTS, ids=[f"{file}:{name}" for file, _, name in TESTS]
)
def test_in_file(file: str, at: int, name: str) -> None:
    result = run_tests(load_rule_file(FILES[file]))[at]
    assert result.name == name
    assert result.got == result.wanted
    assert result.status == "passed"


@pytest.mark.parametrize("file", FILES)
def test_loads_and_compiles(file: str) -> None:
    rules = load_rule_file(FILES[file])
    program = compile_rules(rules)
    labels = [rule.label for rule in (*program.prepare, *program.names)]
    labels += [rule.label for rule in program.tensors]
    text = rules.text  # no checkpoint, so no `when` holds
    conditional = {f"prepare/{rule.id}" for rule in text.prepare if rule.when is not None}
    conditional |= {f"names/{rule.id}" for rule in text.names if rule.when is not None}
    conditional |= {f"tensors/{rule.id}" for rule in text.tensors if rule.when is not None}
    assert len(labels) == len(set(labels))
    assert set(labels) == set(rules.marks) - conditional


@pytest.mark.parametrize("file", [file for file in FILES if "/" not in file])
def test_a_file_at_the_top_is_complete(file: str) -> None:
    rules = load_rule_file(FILES[file])
    assert file == f"{rules.name}.yaml"
    assert rules.target.is_said
    assert rules.text.version in [change.version for change in rules.text.changes]
    assert rules.text.names or rules.text.layouts
    assert rules.text.tests
    assert rules.text.detect.present or rules.text.detect.absent
    assert len(FILES[file].read_text().splitlines()) <= 40


@pytest.mark.parametrize("file", [file for file in FILES if "/" in file])
def test_a_part_has_no_target_class(file: str) -> None:
    text = load_rule_file(FILES[file]).text
    assert text.target is None or text.target.class_ is None


def test_where_they_are() -> None:
    assert shipped_folder() == RULES
    assert shipped_rule_files() == {
        path.stem: path for file, path in FILES.items() if "/" not in file
    }


@pytest.mark.parametrize(
    "said", ["llava-v1.5", "llava-v1.5.yaml", "rules/llava-v1.5.yaml", "rules/llava-v1.5"]
)
def test_found_by_name_from_anywhere(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = load_rule_file(said)
    assert (rules.name, rules.path) == ("llava-v1.5", RULES / "llava-v1.5.yaml")


def test_a_file_that_is_there_comes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "rules/llava-v1.5.yaml", "schema: 1\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    assert load_rule_file("rules/llava-v1.5.yaml").name == "mine"
    assert load_rule_file("llava-v1.5").name == "llava-v1.5"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("llava-v1.6", "llava-v1.5"),
        ("rules/llava-interleaf.yaml", "llava-interleave"),
        ("other/llava-v1.5.yaml", "llava-v1.5"),
    ],
)
def test_not_found_but_near(
    wrong: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = refused(wrong).problems
    assert problem.code == "LR200"
    assert problem.placed_cause.startswith(
        f"`{wrong}` is neither a file nor a shipped rule file (shipped: "
    )
    assert "llava-interleave" in problem.placed_cause
    assert problem.fix == f"Did you mean `{near}`?"


@pytest.mark.parametrize("wrong", ["zzz", "", ".", "rules", "a\0b", "z" * 5000])
def test_not_found_at_all(wrong: str) -> None:
    (problem,) = refused(wrong).problems
    assert (problem.code, problem.fix) == ("LR200", "See `llava-remap rules list`.")
