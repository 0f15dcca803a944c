"""`rules lint`: what it prints for people, programs and GitHub; real names; what it costs to
start.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_remap.rulefile import shipped_folder
from tests.conftest import MANIFESTS, Run, heavy, run_away

pytestmark = pytest.mark.torch  # whole jobs

CLIP = f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}"
#: Each manifest that a shipped file is for, with what else it needs.
MANIFESTS_OF = {
    "llava-v1.5-7b": ("llava-v1.5",),
    "llava-v1.5-7b.tf4.37": ("llava-v1.5",),
    "llava-v1.5-7b.self-trained-deepspeed": ("llava-v1.5",),
    "llava-v1.5-7b.released": ("llava-v1.5", "--source", CLIP),
    "bakllava-v1": ("bakllava",),
    "bakllava-v1.released": ("bakllava", "--source", CLIP),
    "llava-med-v1.5-mistral-7b.released": ("llava-med-v1.5",),
    "llava-interleave-qwen-0.5b.released": ("llava-interleave",),
    "llava-v1.6-vicuna-7b.released": ("llava-next",),
    "llava-next-video-7b.released": ("llava-next-video",),
    "llava-onevision-qwen2-7b.released": ("llava-onevision",),
    "vip-llava-7b": ("vip-llava",),
}

#: A rule that is not idempotent, as its test shows. The file's name has signs that GitHub wants to
#: be escaped.
BAD = (
    "schema: 1\nnames:\n  - {id: head, match: 'head\\.weight$', replace: lm_head.weight}\n"
    "tests: [{from: head.weight, to: lm_head.weight}]\n"
)


@pytest.fixture
def bad() -> Path:
    path = Path("a, b 100%.yaml")
    path.write_text(BAD)
    return path


def test_all_that_is_shipped(run: Run) -> None:
    ran = run("rules", "lint")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == len(list(shipped_folder().rglob("*.yaml")))
    assert all(": clean; " in line for line in ran.out.splitlines())
    assert "names made from them; reversible: " in ran.out


@pytest.mark.parametrize("manifest", MANIFESTS_OF)
def test_against_the_manifests_that_they_are_for(manifest: str, run: Run) -> None:
    name, *more = MANIFESTS_OF[manifest]
    source = ("--source", MANIFESTS / f"{manifest}.json")
    [line] = run(
        "rules", "lint", name, *source, *more
    ).out.splitlines()  # so there is no note either
    assert ": clean; " in line
    assert " real names; reversible: " in line
    # which knows no second source for the tower, and not ViP-LLaVA's projector
    for part in ("wrappers", "buffers", *(() if more or name == "vip-llava" else ("llava",))):
        ran = run("rules", "lint", shipped_folder() / "parts" / f"{part}.yaml", *source)
        assert (ran.code, len(ran.out.splitlines())) == (0, 1)


def test_every_target_name_comes_back(run: Run) -> None:
    content = run(
        "rules",
        "lint",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--format",
        "json",
    ).json
    [file] = content["files"]
    plan = run(
        "apply",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--dry-run",
        "--format",
        "json",
    ).json
    assert (file["names"], file["led_back"]) == (718, 686)
    assert file["led_back"] == len(plan["mapped"])
    assert file["reversible"] is True
    assert file["target_unknown"] is None


def test_for_a_person(bad: Path, run: Run) -> None:
    ran = run("rules", "lint", bad, "llava-v1.5")
    assert ran.code == 2
    assert ran.out.splitlines()[1] == "a, b 100%.yaml:3:5 LR203 not idempotent"
    assert "    head.weight  → lm_head.weight → lm_lm_head.weight" in ran.out
    assert "a, b 100%.yaml: failed; 1 rule, 1 test, " in ran.out
    assert "not reversible: `names/head` (a regex has no way back without `reverse:`)" in ran.out
    assert "llava-v1.5.yaml: clean; " in ran.out.splitlines()[-1]
    assert ran.err == ""


def test_for_programs(bad: Path, run: Run) -> None:
    ran = run("rules", "lint", bad, "none.yaml", "--format", "json")
    assert ran.code == 2
    content = ran.json
    assert (content["format"], content["format_version"], content["clean"]) == (
        "llava-remap/lint",
        1,
        False,
    )
    mine, none = content["files"]
    assert [finding["code"] for finding in mine["findings"]] == ["LR203", "LR208"]
    first = mine["findings"][0]
    assert (first["file"], first["line"], first["column"], first["level"]) == (
        "a, b 100%.yaml",
        3,
        5,
        "error",
    )
    assert first["names"] == sorted(first["details"])
    assert mine["reversible"] is False
    assert mine["one_way"] == [
        {"rule": "names/head", "reason": "a regex has no way back without `reverse:`"}
    ]
    assert (none["loaded"], [finding["code"] for finding in none["findings"]]) == (False, ["LR200"])


def test_for_github(bad: Path, run: Run) -> None:
    ran = run("rules", "lint", bad, "--format", "github")
    assert ran.code == 2
    first, *_ = lines = ran.out.splitlines()
    assert first.startswith(
        "::error file=a%2C b 100%25.yaml,line=3,col=5,title=LR203 not idempotent::`names/head` "
        "takes"
    )
    assert "%0Ahead.weight  → lm_head.weight → lm_lm_head.weight%0A" in first
    assert len(lines) == 2
    assert run("rules", "lint", "llava-v1.5", "--format", "github").out == "\n"


def test_a_note_is_a_notice(run: Run) -> None:
    Path("r.yaml").write_text(
        "schema: 1\nnames: [{id: a, from: lm_head.weight, to: head}, {id: b, from: b, to: c}]\n"
        "tests: [{from: lm_head.weight, to: head}, {from: b, to: c}]\n"
    )
    arguments = ("rules", "lint", "r.yaml", "--source", MANIFESTS / "llava-v1.5-7b.json")
    ran = run(*arguments, "--format", "github")
    assert (ran.code, ran.out[:43]) == (0, "::notice file=r.yaml,line=2,col=50,title=LR")
    [file] = run(*arguments, "--format", "json").json["files"]
    assert [(finding["code"], finding["level"]) for finding in file["findings"]] == [
        ("LR205", "note")
    ]
    assert "r.yaml:2:50 LR205 matched nothing" in run(*arguments).out


@pytest.mark.parametrize(
    ("text", "code", "place"),
    [
        ("schema: 1\nnmaes: []\n", "LR201", "line=2,col=1"),
        ("schema: 1\nnames: [{id: a, match: (, replace: b}]\n", "LR202", "line=2,"),
    ],
)
def test_a_file_that_cant_be_loaded(text: str, code: str, place: str, run: Run) -> None:
    Path("r.yaml").write_text(text)
    ran = run("rules", "lint", "r.yaml", "llava-v1.5", "--format", "github")
    assert ran.code == 2
    assert ran.out.startswith(f"::error file=r.yaml,{place}")
    assert f"title={code} " in ran.out
    human = run("rules", "lint", "r.yaml", "llava-v1.5").out
    assert "r.yaml:2:" in human
    assert "r.yaml: failed; not checked, since it can't be loaded" in human
    assert "llava-v1.5.yaml: clean" in human


def test_no_such_file(run: Run) -> None:
    ran = run("rules", "lint", "none", "--format", "github")
    assert (ran.code, ran.out[:20]) == (2, "::error title=LR200 ")


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("llava-v1.5", "--source", "nowhere/at/all"), "LR100", 3),
        (("llava-v1.5", "--source", "tower=x"), "LR211", 2),
        (("llava-v1.5", "--source", CLIP), "LR211", 2),
    ],
)
def test_a_source_that_cant_be_read(
    arguments: tuple[str, ...], code: str, exit_code: int, run: Run
) -> None:
    for output in ("human", "json", "github"):
        ran = run("rules", "lint", *arguments, "--format", output)
        assert ran.code == exit_code
        assert code in ran.out + ran.err
    assert run("rules", "lint", *arguments, "--format", "json").json["format"] == "llava-remap/lint"


def test_a_drop_of_a_parameter_of_the_real_target(run: Run) -> None:
    """The drop is narrower than the rename, so only the target itself can tell."""
    text = "schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [llava-v1.5.yaml]\n"
    text += (
        "prepare: [{id: biases, from: 'model.vision_tower.{r...}.%s', drop: thought to be "
        "computed}]\n"
    )
    text += "tests: [{from: model.vision_tower.x.%s, dropped: true}]\n"
    source = ("--source", MANIFESTS / "llava-v1.5-7b.json")
    Path("mine.yaml").write_text(text.replace("%s", "bias"))
    assert run("rules", "lint", "mine.yaml").code == 0
    ran = run("rules", "lint", "mine.yaml", *source, "--format", "json")
    assert ran.code == 2
    [finding] = ran.json["files"][0]["findings"]
    assert (finding["code"], finding["line"]) == ("LR306", 6)
    planned = run("apply", "mine.yaml", *source, "--dry-run", "--format", "json").json["problems"]
    assert finding["names"] == next(
        problem["names"] for problem in planned if problem["code"] == "LR306"
    )
    Path("mine.yaml").write_text(text.replace("%s", "no_such_thing"))
    ran = run("rules", "lint", "mine.yaml", *source, "--format", "json")
    assert [finding["code"] for finding in ran.json["files"][0]["findings"]] == ["LR205"]


def test_a_target_that_cant_be_known_is_said_to_be_so(run: Run) -> None:
    ran = run("rules", "lint", "llava-v1.5", "--source", MANIFESTS / "vip-llava-7b.json")
    assert (ran.code, "LR301" in ran.out) == (2, True)
    assert "the target's parameters aren't known (LR3" in ran.out


def test_a_name_that_makes_a_regex_run_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run_away(monkeypatch, "p{L}", 40)
    text = (
        "schema: 1\nsources: {model: {}}\n"
        "names: [{id: a, match: '^(\\p{L}|\\p{L}\\p{L}|[._0-9])+\\p{Lu}$', replace: x}]\n"
    )
    Path("r.yaml").write_text(text)
    ran = run("rules", "lint", "r.yaml", "--source", MANIFESTS / "llava-v1.5-7b.json")
    assert ran.code == 2
    assert "r.yaml:3:9 LR206" in ran.out
    assert "no name was tried on `names/a`" in ran.out


@pytest.mark.parametrize("output", ["human", "json", "github"])
def test_nothing_heavy_is_imported(output: str) -> None:
    """Once transformers was asked which keys the class knows: that is kept."""
    heavy("rules", "lint", "llava-v1.5")
    assert heavy("rules", "lint", "llava-v1.5", "--format", output) == set()


def test_two_names_that_become_one_have_no_way_back(run: Run) -> None:
    Path("two.yaml").write_text(
        "schema: 1\nnames:\n  - {id: a, from: 'a.{p}', to: 'x.{p}'}\n"
        "  - {id: b, from: 'b.{p}', to: 'x.{p}'}\n"
        "tests:\n  - {from: a.w, to: x.w}\n  - {from: b.w, to: x.w}\n"
    )
    ran = run("rules", "lint", "two.yaml")
    assert ran.code == 2
    assert "LR215" in ran.out
    assert "x.w  → b.w, and by another rule to another name" in ran.out


@pytest.mark.parametrize(
    ("plug_in", "said"),
    [
        ("{use: os.system}", "os.system"),
        ("{use: expand_embeddings, with: {sed: 1}}", "Did you mean `seed`?"),
    ],
)
def test_a_plug_in_that_apply_refuses(plug_in: str, said: str, run: Run) -> None:
    head = "schema: 1\nname: mine\nversion: 1.0.0\nsummary: mine\nextends: [llava-v1.5]\n"
    Path("mine.yaml").write_text(f"{head}post_load:\n  - {plug_in}\n")
    source = MANIFESTS / "llava-v1.5-7b.json"
    for ran in (
        run("rules", "lint", "mine.yaml"),
        run("rules", "lint", "mine.yaml", "--source", source),
    ):
        assert ran.code == 2
        assert "mine.yaml:7:5 LR212" in ran.out
        assert said in ran.out
    refused = run("apply", "mine.yaml", "--source", source, "--dry-run")
    assert refused.code != 0
    assert "LR212" in refused.out + refused.err


def test_many_findings_of_one_kind_are_counted(run: Run) -> None:
    Path("r.yaml").write_text(
        "schema: 1\nnames:\n"
        + "".join(f"  - {{id: r{n}, from: a{n}, to: b{n}}}\n" for n in range(100))
    )
    ran = run("rules", "lint", "r.yaml")
    assert (ran.code, ran.out.count("LR213 rule without a test")) == (2, 12)
    assert "… and 88 more of LR213; --format json has every one" in ran.out
    assert (
        len(run("rules", "lint", "r.yaml", "--format", "json").json["files"][0]["findings"]) == 100
    )


def test_names_that_no_rule_takes(run: Run) -> None:
    """`apply` refuses them, so a lint with the same source isn't clean; with names alone, or of
    a part, they are no fault.
    """
    content = json.loads((MANIFESTS / "llava-v1.5-7b.json").read_text())
    content["tensors"]["model.mm_projector.9.weight"] = {"dtype": "F16", "shape": [4096, 4096]}
    Path("more.json").write_text(json.dumps(content))
    ran = run("rules", "lint", "llava-v1.5", "--source", "more.json")
    assert (ran.code, "LR301" in ran.out, "model.mm_projector.9.weight" in ran.out) == (
        2,
        True,
        True,
    )
    assert run("apply", "llava-v1.5", "--source", "more.json", "--dry-run").code == 1
    Path("names.txt").write_text("\n".join(content["tensors"]))
    assert run("rules", "lint", "llava-v1.5", "--source", "names.txt").code == 0
    assert (
        run(
            "rules", "lint", shipped_folder() / "parts" / "wrappers.yaml", "--source", "more.json"
        ).code
        == 0
    )
