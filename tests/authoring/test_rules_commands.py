"""`rules list`, `rules test` and `rules explain` through the command line, with wrong input too."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import get_args

import pytest

from llava_remap.authoring.in_file_tests import Status
from llava_remap.rulefile import load_rule_file, shipped_list, shipped_rule_files
from tests.conftest import MANIFESTS, RELEASED, TINY, Ran, Run
from tests.end_to_end.test_expected import CASES, expected

RELEASED_7B = MANIFESTS / "llava-v1.5-7b.released.json"
CLIP_L = MANIFESTS / "clip-vit-large-patch14-336.json"
HEAD = "schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [llava-v1.5.yaml]\n"
NORM = "names:\n  - {id: norm, from: 'model.norm.{p}', to: 'elsewhere.{p}'}  # mine\n"
TESTED = NORM + "tests:\n  - {from: model.norm.weight, to: elsewhere.weight}\n"


def mine(text: str, head: str = HEAD) -> Path:
    path = Path("mine.yaml")
    path.write_text(head + text)
    return path


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def told(ran: Ran) -> list[tuple[str, str]]:
    """Each line with a status: that and the rest."""
    lines = [line.partition(" ") for line in ran.out.splitlines()]
    return [
        (status.lower(), rest) for status, _, rest in lines if status.lower() in get_args(Status)
    ]


# --- list


def test_list_says_what_each_file_is_for(run: Run) -> None:
    ran = run("rules", "list")
    for name, path in shipped_rule_files().items():
        text = load_rule_file(path).text
        [line] = [line for line in ran.out.splitlines() if line.startswith(f"{name} ")]
        assert line.split(None, 2)[1:] == [text.version, text.summary]
        assert f"extends {', '.join(text.extends)}" in run("rules", "list", "-v").out
    assert "extends" not in ran.out
    summaries = [listed.summary for listed in shipped_list()]
    starts = {
        line.index(next((s for s in summaries if s in line), "extends"))
        for line in ran.out.splitlines()
    }
    assert len(starts) == 1  # columns


def test_list_as_json(run: Run) -> None:
    found = run("rules", "list", "--format", "json").json
    assert (found["format"], found["format_version"]) == ("llava-remap/rule-files", 1)
    for entry, path in zip(found["rule_files"], shipped_rule_files().values(), strict=True):
        text = load_rule_file(path).text
        assert entry == {
            "name": text.name,
            "version": text.version,
            "summary": text.summary,
            "extends": list(text.extends),
        }


# --- test: in the file


def test_a_rule_without_a_test_is_told(run: Run) -> None:
    ran = run("rules", "test", mine(NORM))
    assert ran.code == 0  # `rules lint` reports it as an error
    assert told(ran) == [
        ("missing", "mine.yaml: names/norm: no test in the file reaches it; --update writes one")
    ]
    assert "mine.yaml: 0 passed, 0 failed, 1 missing" in ran.out


def test_rules_of_parents_are_tested_there(run: Run) -> None:
    ran = run("rules", "test", mine(TESTED))
    assert (ran.code, ran.out) == (0, "mine.yaml: 1 passed, 0 failed\n")


def test_every_status_in_json(run: Run) -> None:
    rules = mine(
        TESTED + "  - {from: model.norm.x, dropped: true}\n"
        "prepare: [{id: regex, match: '^q$', replace: x}]\n"
    )
    ran = run("rules", "test", rules, "llava-interleave", "--format", "json")
    assert ran.code == 1
    assert (ran.json["format"], ran.json["format_version"], ran.json["passed"]) == (
        "llava-remap/tests",
        1,
        False,
    )
    first, second = ran.json["files"]
    assert (first["passed"], second["passed"]) == (False, True)
    assert [(test["status"], test["name"]) for test in first["tests"]] == [
        ("passed", "model.norm.weight"), ("failed", "model.norm.x"),
    ]  # fmt: skip
    assert [(rule["status"], rule["rule"]) for rule in first["untested"]] == [
        ("missing", "prepare/regex")
    ]


def test_update_writes_tests_that_pass(run: Run) -> None:
    rules = mine(NORM + "prepare:\n  - {id: drop, from: '{r...}.q', drop: unwanted}\n# end\n")
    before = rules.read_text()
    ran = run("rules", "test", rules, "--update")
    assert ran.code == 0
    assert told(ran) == [
        ("written", "mine.yaml: prepare/drop: a test of x.weight.q"),
        ("written", "mine.yaml: names/norm: a test of model.norm.weight"),
    ]
    assert rules.read_text() == before + (
        "\ntests:\n  - {from: x.weight.q, dropped: true}\n"
        "  - {from: model.norm.weight, to: elsewhere.weight}\n"
    )
    assert run("rules", "test", rules).out == "mine.yaml: 2 passed, 0 failed\n"
    written = rules.read_text()
    assert run("rules", "test", rules, "--update").code == 0  # nothing is missing any more
    assert rules.read_text() == written


def test_update_takes_real_names_of_a_source(run: Run) -> None:
    tower = "{id: tower, from: 'model.vision_tower.{r...}', to: '{r}'}"
    rules = mine(rf"names: [{{id: up, match: '\.mlp\.up_proj', replace: .up}}, {tower}]")
    run(
        "rules",
        "test",
        rules,
        "--source",
        RELEASED_7B,
        "--source",
        f"vision_tower={CLIP_L}",
        "--update",
    )
    tests = load_rule_file(rules).text.tests
    names = json.loads(RELEASED_7B.read_text())["tensors"]
    assert tests[0].old_names[0] in names
    assert (
        tests[1].old_names[0].startswith("model.vision_tower.vision_tower.vision_model.")
    )  # with the prefix of its source


def test_update_of_a_rule_with_when(run: Run) -> None:
    when = "when: {present: ['a.{n:int}'], config: {kind: [x, 'no'], other: null}}"
    rules = mine(
        f"names: [{{id: norm, from: 'model.norm.{{p}}', to: 'elsewhere.{{p}}', {when}}}]\n"
    )
    assert run("rules", "test", rules, "--update").code == 0
    [test] = load_rule_file(rules).text.tests
    assert test.to == "elsewhere.weight"
    assert (test.given.names, test.given.config) == (("a.0",), {"kind": "x"})
    assert run("rules", "test", rules).out == "mine.yaml: 1 passed, 0 failed\n"


def test_update_of_what_no_name_is_known_for(run: Run) -> None:
    """A regex gives no name, and a rule that another one shadows is never reached."""
    rules = mine(
        NORM + "  - {id: late, from: 'model.norm.{p}', drop: unwanted}\n"
        "  - {id: regex, match: '^q$', drop: unwanted}\n"
    )
    ran = run("rules", "test", rules, "--update")
    assert [(status, text.split(": ")[1]) for status, text in told(ran)] == [
        ("written", "names/norm"), ("missing", "names/late"), ("missing", "names/regex"),
    ]  # fmt: skip
    assert "write the test by hand" in ran.out


def test_update_adds_nothing_to_a_file_whose_tests_fail(run: Run) -> None:
    rules = mine(NORM + "tests: [{from: lm_head.weight, dropped: true}]\n")
    before = rules.read_bytes()
    ran = run("rules", "test", rules, "--update")
    assert ran.code == 1
    assert "no test is added to a file whose tests fail" in ran.out
    assert rules.read_bytes() == before


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_update_leaves_every_other_byte(newline: bytes, run: Run) -> None:
    rules = mine(
        "tests:   # first\n- {from: lm_head.weight, to: language_model.lm_head.weight} # why\n\n"
        "# é 😀\n" + NORM
    )
    before = rules.read_bytes().replace(b"\n", newline)
    rules.write_bytes(before)
    rules.chmod(0o640)
    assert run("rules", "test", rules, "--update").code == 0
    inserted = b"- {from: model.norm.weight, to: elsewhere.weight}" + newline
    at = before.index(b"# why") + len(b"# why" + newline)
    assert rules.read_bytes() == before[:at] + inserted + before[at:]
    assert stat.S_IMODE(rules.stat().st_mode) == 0o640
    assert list(files()) == ["mine.yaml"]


def test_update_through_a_link(run: Run) -> None:
    mine(NORM)
    Path("link.yaml").symlink_to("mine.yaml")
    assert run("rules", "test", "link.yaml", "--update").code == 0
    assert Path("link.yaml").is_symlink()
    assert "tests:" in Path("mine.yaml").read_text()


def test_update_that_would_change_what_the_file_says(run: Run) -> None:
    """Text that ends with the file has no line's end; with one behind it, it would be another
    text.
    """
    rules = mine("names: [{id: one, from: a, to: b}]\nprocessor:\n  chat_template: |\n    a")
    before = files()
    ran = run("rules", "test", rules, "--update")
    assert ran.code == 2
    assert "LR201" in ran.err
    assert "End the file with an empty line" in ran.err
    assert files() == before


@pytest.mark.parametrize("how", ["mode", "access", "disk"])
def test_update_where_nothing_can_be_written(
    how: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = mine(NORM)
    before = files()
    if how == "mode":
        rules.chmod(0o444)
    elif how == "access":  # as for a user who doesn't own the file
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    else:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    ran = run("rules", "test", rules, "--update")
    assert ran.code == 4
    assert "LR508" in ran.err
    assert (
        "No space left on device"
        if how == "disk"
        else "mine.yaml can't be written: it is read-only"
    ) in ran.err
    assert files() == before


def test_a_rule_file_that_is_not_there(run: Run) -> None:
    for command in ("test", "explain"):
        ran = run("rules", command, "llava-v15", *["x"] * (command == "explain"))
        assert ran.code == 2
        assert "LR200" in ran.err
    ran = run("rules", "test", "llava-v1.5", "llava-v15", "--format", "json")
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR200"]


# --- test: snapshots


def test_a_snapshot_that_was_asked_for_is_missing(run: Run) -> None:
    ran = run("rules", "test", mine(TESTED), "--source", RELEASED_7B)
    assert ran.code == 1
    assert told(ran) == [
        (
            "missing",
            "mine.snapshots/llava-v1.5-7b.released.json: the snapshot is missing; "
            "--update writes it",
        )
    ]
    assert list(files()) == ["mine.yaml"]


@pytest.mark.parametrize(("name", "rules"), CASES.items(), ids=CASES)
def test_a_snapshot_is_what_the_official_converter_makes(name: str, rules: str, run: Run) -> None:
    path = Path("mine.yaml")
    path.write_text(HEAD.replace("llava-v1.5", rules))
    assert run("rules", "test", path, "--source", MANIFESTS / f"{name}.json", "--update").code == 0
    content = json.loads(Path(f"mine.snapshots/{name}.json").read_text())
    assert content["mapping"]["model"] == expected(name)["map"]
    assert sorted(content["dropped"]["model"]) == sorted(expected(name)["dropped"])


def snapshot(run: Run, text: str = TESTED, *sources: object) -> Path:
    """A rule file's snapshot, written."""
    arguments = [
        argument for source in sources or (RELEASED_7B,) for argument in ("--source", source)
    ]
    ran = run("rules", "test", mine(text), *arguments, "--update")
    assert ran.code == 0
    [path] = Path("mine.snapshots").iterdir()
    return path


def test_a_snapshot_as_a_file(run: Run) -> None:
    path = snapshot(run, TESTED, RELEASED_7B, f"vision_tower={CLIP_L}")
    assert path.name == "llava-v1.5-7b.released+clip-vit-large-patch14-336.json"
    content = json.loads(path.read_text())
    assert (content["format"], content["format_version"], content["rules"]) == (
        "llava-remap/snapshot",
        1,
        "mine",
    )
    assert content["sources"] == {
        "model": "llava-v1.5-7b.released.json",
        "vision_tower": "clip-vit-large-patch14-336.json",
    }
    assert content["config"] == {  # the keys of `detect`
        "architectures": ["LlavaLlamaForCausalLM"],
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": None,
    }
    assert content["fits"] is True
    assert content["mapping"]["model"]["model.norm.weight"] == "elsewhere.weight"
    assert len(content["mapping"]["vision_tower"]) == 391  # the names that `select` takes
    assert content["dropped"]["vision_tower"] == {
        "vision_model.embeddings.position_ids": "prepare/position-ids"
    }
    lines = path.read_text().splitlines()
    names = [line.split('"')[1] for line in lines if line.startswith("   ") and '": ' in line]
    assert len(names) == len(set(names)) == 327 + 392  # a name a line
    assert list(content["mapping"]["model"]) == sorted(content["mapping"]["model"])


def test_a_snapshot_runs_without_its_source(run: Run) -> None:
    snapshot(run)
    ran = run("rules", "test", "mine.yaml")
    assert (ran.code, ran.out) == (
        0,
        "mine.yaml: 1 passed, 0 failed, snapshots: 1 passed (327 names)\n",
    )
    before = files()
    assert run("rules", "test", "mine.yaml", "--source", RELEASED_7B, "--update").code == 0
    assert files() == before


def test_a_difference_is_shown_folded_and_never_overwritten(run: Run) -> None:
    path = snapshot(run)
    rules = mine(
        "names:\n  - {id: up, from: 'model.layers.{n:int}.mlp.up_proj.{p}', to: 'up.{n}.{p}'}\n"
        + TESTED.partition("\n")[2]
    )
    for more in ((), ("--source", RELEASED_7B, "--update")):
        before = path.read_bytes()
        ran = run("rules", "test", rules, *more)
        assert ran.code == 1
        assert (
            "FAILED mine.snapshots/llava-v1.5-7b.released.json: If the new result is right, "
            "delete the file" in ran.out
        )
        assert (
            "  model.layers.{0..31}.mlp.up_proj.weight\n"
            "    wanted language_model.model.layers.{0..31}.mlp.up_proj.weight\n"
            "    got    up.{0..31}.weight\n"
        ) in ran.out
        assert path.read_bytes() == before
    [failed] = run("rules", "test", rules, "--format", "json").json["files"][0]["snapshots"]
    assert (failed["status"], len(failed["differences"])) == ("failed", 32)
    path.unlink()
    assert run("rules", "test", rules, "--source", RELEASED_7B, "--update").code == 0
    assert (
        json.loads(path.read_text())["mapping"]["model"]["model.layers.7.mlp.up_proj.weight"]
        == "up.7.weight"
    )


def test_names_that_a_snapshot_lacks_are_added(run: Run) -> None:
    path = snapshot(run)
    whole = path.read_bytes()
    content = json.loads(whole)
    for name in ("model.norm.weight", "lm_head.weight"):
        del content["mapping"]["model"][name]
    path.write_text(json.dumps(content))
    ran = run("rules", "test", "mine.yaml", "--source", RELEASED_7B)
    assert ran.code == 1
    assert "the snapshot lacks 2 names of the source; --update adds them" in ran.out
    assert run("rules", "test", "mine.yaml").code == 0
    ran = run("rules", "test", "mine.yaml", "--source", RELEASED_7B, "--update")
    assert ran.code == 0
    assert "2 names added" in ran.out
    assert path.read_bytes() == whole


def test_another_family_by_detect_is_a_difference(run: Run) -> None:
    snapshot(run)
    ran = run("rules", "test", mine(TESTED + "detect: {config: {image_aspect_ratio: anyres}}\n"))
    assert ran.code == 1
    assert "(detect)\n    wanted fits\n    got    is contradicted" in ran.out


def test_a_new_when_asks_for_what_a_snapshot_does_not_say(run: Run) -> None:
    path = snapshot(run)
    when = TESTED.replace("}'}  #", "}', when: {config: {mm_hidden_size: 1024}}}  #").replace(
        "weight}\n", "weight, dropped: true}\n"
    )
    rules = mine(when.partition("tests:")[0])
    ran = run("rules", "test", rules)
    assert ran.code == 1
    assert "rules read `mm_hidden_size` of the config, which the snapshot lacks" in ran.out
    assert run("rules", "test", rules, "--source", RELEASED_7B, "--update").code == 0
    assert json.loads(path.read_text())["config"]["mm_hidden_size"] == 1024
    assert run("rules", "test", rules).code == 0


def test_a_source_and_a_selection_that_are_gone(run: Run) -> None:
    snapshot(run, TESTED, RELEASED_7B, f"vision_tower={CLIP_L}")
    ran = run(
        "rules", "test", mine(TESTED + "sources: {vision_tower: {select: 'vision.{r...}'}}\n")
    )
    assert ran.code == 1
    assert "got    (not selected)" in ran.out
    text = "names: [{id: all, from: '{r...}', to: 'a.{r}'}]\nsources: {other: {}}\n"
    ran = run("rules", "test", mine(text, "schema: 1\nname: mine\n"))
    assert ran.code == 1
    assert "got    (no such source)" in ran.out


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "llava-remap/snapshot", "format_version": 2}',
        '{"format": "llava-remap/snapshot", '
        '"format_version": 1, "sources": {}, "config": {}, "fits": true, "mapping": {"model": '
        '{"a": '
        '1}}, "dropped": {}}',
        "\0\xff",
    ],
)
def test_a_broken_snapshot(text: str, run: Run) -> None:
    path = snapshot(run)
    path.write_bytes(text.encode("latin-1"))
    ran = run("rules", "test", "mine.yaml", "--format", "json")
    assert ran.code == 3
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR113"]
    assert path.name in ran.json["problems"][0]["message"]


def test_a_folder_of_snapshots_that_cannot_be_made(run: Run) -> None:
    Path("mine.snapshots").write_text("a file")
    ran = run("rules", "test", mine(TESTED), "--source", RELEASED_7B, "--update")
    assert ran.code == 4
    assert "LR508" in ran.err


@pytest.mark.parametrize(
    ("sources", "code", "said"),
    [
        (("no-such-folder/x",), 3, "LR1"),
        (("",), 2, "LR211"),
        (("tower=x",), 2, "LR211"),
        ((f"vision_tower={CLIP_L}",), 2, "Give one: --source model=SRC"),
        ((RELEASED_7B, RELEASED_7B), 2, "given twice"),
    ],
)
@pytest.mark.parametrize("command", ["test", "explain"])
def test_sources_that_cannot_be_had(
    command: str, sources: tuple[object, ...], code: int, said: str, run: Run
) -> None:
    arguments = [argument for source in sources for argument in ("--source", source)]
    ran = run("rules", command, "llava-v1.5", *arguments, "--offline")
    assert ran.code == code
    assert said in ran.err


def test_a_part_has_no_sources(run: Run) -> None:
    part = Path(__file__).parents[2] / "rules" / "parts" / "wrappers.yaml"
    ran = run("rules", "test", part, "--source", RELEASED_7B)
    assert ran.code == 2
    assert "it is a part of other rule files" in ran.err


# --- explain


def test_explain_one_name(run: Run) -> None:
    ran = run("rules", "explain", "llava-v1.5", "module.model.mm_projector.0.weight")
    assert ran.code == 0
    assert ran.out == (
        "llava-v1.5 1.0.0\n"
        "  names/unused-newline is left out, since its `when` doesn't hold: it has no config.json "
        "to say mm_patch_merge_type, "
        "not 'flat' or 'spatial'; it has no config.json to say image_aspect_ratio, not 'pad' or "
        "'square'\n\n"
        "prepare/data-parallel: module → taken out\n"
        "names/projector-in: model.mm_projector.0.{p} → multi_modal_projector.linear_1.{p}\n"
        "  module.model.mm_projector.0.weight → model.mm_projector.0.weight → "
        "multi_modal_projector.linear_1.weight\n\n"
        "1 mapped\n"
    )


def test_explain_what_is_unmapped_last_and_why(run: Run) -> None:
    names = (
        "model.mm_projector.1.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "lm_head.weight",
        "lm_head.weight",
    )
    ran = run("rules", "explain", "llava-v1.5", *names)
    assert ran.code == 0
    assert (
        "  computed by the model since transformers 4.32\n"
        "  model.layers.0.self_attn.rotary_emb.inv_freq\n" in ran.out
    )
    assert (
        "    names/projector-in (model.mm_projector.0.{p}): `0` is expected where the name "
        "has `1`\n" in ran.out
    )
    assert (
        ran.out.index("lm_head.weight")
        < ran.out.index("inv_freq")
        < ran.out.index("unmapped: no rule of `names` takes it")
    )
    assert ran.out.endswith("\n1 mapped, 1 dropped, 1 unmapped\n")


def test_explain_as_json(run: Run) -> None:
    ran = run(
        "rules", "explain", "llava-v1.5", "model.norm.weight", "model.norm", "--format", "json"
    )
    assert ran.code == 0
    found = ran.json
    assert (found["format"], found["format_version"]) == ("llava-remap/explanation", 1)
    assert found["rules"]["name"] == "llava-v1.5"
    mapped, unmapped = found["names"]
    assert mapped == {
        "source": None,
        "name": "model.norm.weight",
        "outcome": "mapped",
        "target": "language_model.model.norm.weight",
        "reason": None,
        "steps": [
            {
                "rule": "names/text-norm",
                "pattern": "model.norm.{p}",
                "makes": "language_model.model.norm.{p}",
                "after": "language_model.model.norm.weight",
            }
        ],
        "nearest": [],
    }
    assert unmapped["nearest"][0] == {
        "rule": "names/text-norm",
        "pattern": "model.norm.{p}",
        "why": "the name ends where `.{p}` is expected",
    }


def test_explain_all_names_of_sources(run: Run) -> None:
    sources = ("--source", RELEASED_7B, "--source", f"vision_tower={CLIP_L}")
    ran = run("rules", "explain", "llava-v1.5", *sources)
    assert ran.code == 0
    assert (
        "  vision_tower: 392 of 592 names: only names that match `vision_model.{rest...}`"
        in ran.out
    )
    assert (
        "  model.layers.{0..31}.mlp.up_proj.weight → "
        "language_model.model.layers.{0..31}.mlp.up_proj.weight\n" in ran.out
    )
    assert "prefix of vision_tower: model.vision_tower.vision_tower.\n" in ran.out
    assert ran.out.endswith("\n686 mapped, 33 dropped\n")
    assert len(ran.out.splitlines()) < 150
    found = run("rules", "explain", "llava-v1.5", *sources, "--format", "json").json["names"]
    plan = run("apply", "llava-v1.5", *sources, "--dry-run", "--format", "json").json
    mapped = {(m["from"][0]["source"], m["from"][0]["name"]): m["target"] for m in plan["mapped"]}
    assert {
        (n["source"], n["name"]): n["target"] for n in found if n["outcome"] == "mapped"
    } == mapped
    dropped = {(d["source"], d["name"]) for d in plan["dropped"]}
    assert {(n["source"], n["name"]) for n in found if n["outcome"] == "dropped"} == dropped


def test_explain_a_tower_that_is_not_used(run: Run) -> None:
    ran = run(
        "rules",
        "explain",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--source",
        f"vision_tower={CLIP_L}",
    )
    assert (
        "vision_tower: none of 592 names: `model` has these tensors itself, "
        "`model.vision_tower.{rest...}`" in ran.out
    )


def test_explain_names_of_a_source(run: Run) -> None:
    sources = ("--source", RELEASED_7B, "--source", f"vision_tower={CLIP_L}")
    names = ("vision_model.pre_layrnorm.bias", "not.there")
    found = run("rules", "explain", "llava-v1.5", *names, *sources, "--format", "json").json[
        "names"
    ]
    assert [(n["source"], n["name"], n["outcome"]) for n in found] == [
        ("vision_tower", names[0], "mapped"), (None, names[1], "unmapped"),
    ]  # fmt: skip


def test_explain_rules_that_do_not_count(run: Run) -> None:
    rules = mine(NORM.replace("}'}", "}', when: {config: {mm_hidden_size: 7}}}"))
    ran = run("rules", "explain", rules, "model.norm.weight", "--source", RELEASED_7B, "-v")
    assert (
        "names/norm is left out, since its `when` doesn't hold: its config says mm_hidden_size: "
        "1024, not 7" in ran.out
    )
    assert "names/text-norm" in ran.out
    found = run("rules", "explain", rules, "model.norm.weight", "--format", "json").json
    left_out = {entry["rule"]: entry["why"] for entry in found["left_out"]}
    assert left_out.pop("names/norm") == ["it has no config.json to say mm_hidden_size, not 7"]
    assert list(left_out) == ["names/unused-newline"]


def test_explain_says_of_several_rules_that_do_not_count_only_how_many(run: Run) -> None:
    rules = mine(NORM.replace("}'}", "}', when: {config: {mm_hidden_size: 7}}}"))
    ran = run("rules", "explain", rules, "model.norm.weight")
    assert "  2 rules are left out, since their `when` doesn't hold; -v says why\n" in ran.out
    assert "names/norm is left out" not in ran.out
    ran = run("rules", "explain", rules, "model.norm.weight", "-v")
    assert ran.out.count(" is left out, since its `when` doesn't hold: ") == 2


def test_explain_a_genuine_checkpoint_that_fits_nothing(run: Run) -> None:
    ran = run("rules", "explain", "llava-v1.5", "--source", TINY / "clip-vit-tiny-patch14-28")
    assert ran.code == 0
    assert "94 unmapped" in ran.out


@pytest.mark.parametrize(
    "name", ["[bold]x[/]", "a b", "é😀", "a\nb", "..", "{x}", "%s", "x" * 5000, "--", "\ud800"]
)
def test_explain_odd_names(name: str, run: Run) -> None:
    ran = run("rules", "explain", "llava-v1.5", "--format", "json", "--", name)
    assert ran.code == 0
    assert [(n["name"], n["outcome"]) for n in ran.json["names"]] == [(name, "unmapped")]


def test_markup_in_a_name_is_text(run: Run) -> None:
    assert "  [bold]x[/]\n" in run("rules", "explain", "llava-v1.5", "[bold]x[/]").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Give names of tensors, or --source SRC"),
        (("",), "a name to explain is empty"),
        (("--as", "key-mapping", "model.norm.weight"), "Leave the names out"),
    ],
)
def test_explain_without_what_it_needs(arguments: tuple[str, ...], said: str, run: Run) -> None:
    ran = run("rules", "explain", "llava-v1.5", *arguments)
    assert ran.code == 2
    assert "LR211" in ran.err
    assert said in ran.err


def test_as_key_mapping(run: Run) -> None:
    ran = run("rules", "explain", "llava-v1.5", "--as", "key-mapping")
    assert ran.code == 0
    assert ran.json[r"^model\.mm_projector\.0\.(?=[^.]+$)"] == "multi_modal_projector.linear_1."
    assert "Nothing can be dropped" in ran.err
    assert "Parameters that only `vision_tower` has are missing" in ran.err


def test_as_key_mapping_of_rules_with_when(run: Run) -> None:
    rules = mine(NORM.replace("}'}", "}', when: {config: {mm_hidden_size: 1024}}}"))
    ran = run("rules", "explain", rules, "--as", "key-mapping")
    assert "elsewhere" not in ran.out
    assert "`names/norm` is left out, since its `when` doesn't hold" in ran.err
    ran = run("rules", "explain", rules, "--as", "key-mapping", "--source", RELEASED_7B)
    assert "elsewhere" in ran.out
    assert "names/norm" not in ran.err


def test_a_checkpoint_of_weights_is_only_read(run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in RELEASED.rglob("*")}
    assert run("rules", "test", mine(TESTED), "--source", RELEASED / "bin", "--update").code == 0
    assert {path: path.stat().st_mtime_ns for path in RELEASED.rglob("*")} == before
    assert Path("mine.snapshots/bin.json").is_file()


def test_a_snapshot_of_another_checkpoint_of_the_same_name(run: Run) -> None:
    """Two checkpoints in folders of one name: the second one hasn't the names of the first, so
    it isn't that one.
    """
    rules = (
        "schema: 1\nname: m\nsources: {model: {}}\nnames: [{id: a, from: '{r...}', to: 'x.{r}'}]\n"
    )
    Path("m.yaml").write_text(rules + "tests: [{from: a.b, to: x.a.b}]\n")
    for folder, name in (("one", "a.w"), ("two", "b.w")):
        Path(folder).mkdir()
        content = {
            "format": "llava-remap/manifest",
            "format_version": 1,
            "tensors": {name: {"dtype": "F16", "shape": [1]}},
        }
        Path(folder, "c.json").write_text(json.dumps(content))
    assert run("rules", "test", "m.yaml", "--source", "one/c.json", "--update").code == 0
    before = Path("m.snapshots/c.json").read_bytes()
    ran = run("rules", "test", "m.yaml", "--source", "two/c.json", "--update")
    assert ran.code == 1
    assert "(not in the checkpoint)" in ran.out
    assert Path("m.snapshots/c.json").read_bytes() == before
