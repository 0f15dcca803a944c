"""The other commands, and what a start costs: which modules a command imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llava_remap import __version__
from llava_remap.rulefile import shipped_rule_files
from tests.conftest import CLIP, HEAVY, MANIFESTS, RELEASED, TINY, Changed, Run, largest_file


def test_inspect_names_the_file_and_the_command(run: Run) -> None:
    ran = run("inspect", RELEASED / "sharded")
    assert ran.code == 0
    assert "torch .bin, 2 shards (pytorch_model.bin.index.json); 27 tensors; 247 kB" in ran.out
    assert "llava-v1.5: fits, maps 25 of 25 names" in ran.out
    assert (
        ", llava-interleave (25 of 25), " in ran.out
    )  # it maps the names, and another family has the same
    assert f"llava-remap apply llava-v1.5 --source {RELEASED / 'sharded'}" in ran.out


def test_the_command_that_inspect_gives_runs(run: Run) -> None:
    """Apart from the tower, which is a second source and named as such."""
    printed = run("inspect", RELEASED / "sharded").out
    [line] = [line for line in printed.splitlines() if line.startswith("llava-remap apply")]
    assert "--source vision_tower=DIR" in line
    arguments = line.replace("vision_tower=DIR", f"vision_tower={CLIP}").split()[1:]
    assert run(*arguments).code == 0


def test_inspect_what_fits_nothing(run: Run, changed: Changed) -> None:
    """What cuts images into tiles without a learned end of rows: each rule file is told with why
    it doesn't fit.
    """
    ran = run(
        "inspect",
        changed(
            TINY / "llava-v1.6-mistral" / "safetensors",
            config=lambda c: c.update(mm_patch_merge_type="flat"),
        ),
    )
    assert ran.code == 0
    assert (
        "  llava-next: doesn't fit, maps 81 of 81 names\n"
        "    its config says mm_patch_merge_type: 'flat', not 'spatial_unpad'" in ran.out
    )
    verdicts = [line for line in ran.out.splitlines() if "doesn't fit, maps" in line]
    [far] = [line for line in ran.out.splitlines() if "know less than a tenth of the" in line]
    assert "hf-layouts (2 of 81)" in far
    others = [name for name in shipped_rule_files() if f" {name} (" not in far]
    assert len(verdicts) == len(others) == len(shipped_rule_files()) - far.count(" of 81")
    assert all(": " in line.split(" names")[1] for line in verdicts[3:])
    assert "llava-next takes every name, but its `detect` refuses this config" in ran.out


def test_inspect_a_manifest_that_can_only_be_planned(run: Run) -> None:
    ran = run("inspect", MANIFESTS / "llava-interleave-qwen-0.5b.released.json")
    assert ran.code == 0
    assert "llava-interleave: fits, maps 715 of 715 names" in ran.out
    assert "--dry-run" in ran.out


def test_inspect_what_is_converted_already(run: Run) -> None:
    assert (
        run(
            "apply",
            "llava-v1.5",
            "--source",
            RELEASED / "bin",
            "--source",
            f"vision_tower={CLIP}",
            "--output",
            "out",
        ).code
        == 0
    )
    ran = run("inspect", "out")
    assert ran.code == 0
    assert "LR109" in ran.out
    assert "80 of 80 names in out are in layout classic" in ran.out
    assert "llava-remap apply" not in ran.out
    said = json.loads(run("inspect", "out", "--format", "json").out)
    assert (said["converted"], said["command"]) == (True, None)


def test_rules_list(run: Run) -> None:
    ran = run("rules", "list")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines() if not line.startswith(" ")] == sorted(
        p.stem for p in Path(__file__).parents[2].glob("rules/*.yaml")
    )


def test_rules_test(run: Run, tmp_path: Path) -> None:
    assert run("rules", "test", "llava-v1.5", "llava-interleave").code == 0
    rules = tmp_path / "mine.yaml"
    rules.write_text("""\
schema: 1
name: mine
version: 1.0.0
summary: LLaVA-1.5 with tests of one's own
extends: [llava-v1.5.yaml]
tests:
  - {from: lm_head.weight, to: language_model.lm_head.weight}
  - {from: lm_head.weight, dropped: true}
""")
    ran = run("rules", "test", rules)
    assert ran.code == 1
    assert "FAILED" in ran.out
    assert "wanted (dropped)" in ran.out
    assert "got    language_model.lm_head.weight" in ran.out
    assert "1 passed, 1 failed" in ran.out


def test_an_error_in_a_rule_file_has_its_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "schema: 1\nextends: [llava-v1.5.yaml]\nname: mine\nnamse: []\n"
    )
    ran = run("apply", "mine.yaml", "--source", RELEASED / "bin")
    assert ran.code == 2
    assert "mine.yaml:4:1 unknown field `namse`" in ran.err
    assert "Did you mean `names`?" in ran.err


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(run: Run, tmp_path: Path) -> None:
    report = tmp_path / "plan.json"
    report.write_text("earlier")
    source = ["--source", RELEASED / "sharded", "--source", f"vision_tower={CLIP}"]
    run(
        "apply", "llava-v1.5", *source, "--dry-run"
    )  # so that only the report is left to be written
    with largest_file(2000):
        ran = run("apply", "llava-v1.5", *source, "--dry-run", "--report", report)
    assert (ran.code, "LR508" in ran.err, "Give another --report." in ran.err) == (4, True, True)
    assert (report.read_text(), [*tmp_path.iterdir()]) == ("earlier", [report])


def test_report_is_the_plan(run: Run, tmp_path: Path) -> None:
    report = tmp_path / "plan.json"
    source = ("--source", RELEASED / "bin", "--source", f"vision_tower={CLIP}")
    ran = run("apply", "llava-v1.5", *source, "--dry-run", "--format", "json", "--report", report)
    assert json.loads(report.read_text()) == ran.json
    run("apply", "llava-v1.5", *source, "--output", "out", "--report", report)
    content = json.loads(report.read_text())
    assert content["result"]["output"] == "out"
    assert "model.safetensors.index.json" in content["result"]["files"]


def test_json_of_a_plan_has_its_form(run: Run) -> None:
    plan = run(
        "apply",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--dry-run",
        "--format",
        "json",
    ).json
    assert (plan["format"], plan["format_version"]) == ("llava-remap/plan", 2)
    assert plan["rules"]["name"] == "llava-v1.5"
    assert len(plan["rules"]["sha256"]) == 64
    lists = (
        "mapped",
        "aliases",
        "dropped",
        "unmapped",
        "missing",
        "mismatched",
        "collisions",
        "post_load",
        "value_checks",
        "problems",
        "notes",
    )
    assert all(isinstance(plan[name], list) for name in lists)
    assert plan["mapped"] == sorted(plan["mapped"], key=lambda entry: entry["target"])
    [entry] = [m for m in plan["mapped"] if m["target"] == "multi_modal_projector.linear_1.weight"]
    assert entry == {
        "target": "multi_modal_projector.linear_1.weight",
        "dtype": "F16",
        "shape": [4096, 1024],
        "from": [{"source": "model", "name": "model.mm_projector.0.weight"}],
        "then": [],
        "rules": ["names/projector-in"],
    }
    assert plan["nbytes"]["write"] == plan["nbytes"]["read"] + 2 * 64 * 4096 * 2


def test_unmapped_and_missing_have_suggestions(run: Run, changed: Changed) -> None:
    def rename(tensors: dict[str, object]) -> None:
        tensors["model.mm_proj.0.bias"] = tensors.pop("model.mm_projector.0.bias")

    source = ("--source", changed(tensors=rename), "--source", f"vision_tower={CLIP}")
    plan = run("apply", "llava-v1.5", *source, "--dry-run", "--format", "json").json
    assert plan["unmapped"][0]["suggestions"] == ["multi_modal_projector.linear_1.bias"]
    assert plan["missing"][0]["suggestions"] == ["model.mm_proj.0.bias"]


def imported(code: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after `code`."""
    program = f"import sys\n{code}\nprint('loaded:', *(set({HEAVY}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(ran.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["apply", "--help"],
        ["rules", "list"],
        ["rules", "test", "llava-v1.5"],
        ["rules", "explain", "llava-v1.5", "lm_head.weight", "x"],
        ["rules", "explain", "llava-v1.5", "--as", "key-mapping"],
        ["rules", "explain", "llava-v1.5", "--source", str(MANIFESTS / "llava-v1.5-7b.json")],
    ],
)
def test_commands_that_need_no_torch_import_none(arguments: list[str]) -> None:
    program = (
        "import contextlib\nfrom llava_remap.cli.commands import app\n"
        f"with contextlib.suppress(SystemExit): app({arguments})"
    )
    assert imported(program) == set()


def test_the_package_alone_imports_nothing_heavy() -> None:
    assert imported("import llava_remap") == set()


def test_planning_knows_no_torch() -> None:
    """The rooms up to the plan, the target's question to transformers excepted."""
    assert (
        imported(
            "import llava_remap.planning, llava_remap.execute, llava_remap.folder, "
            "llava_remap.jobs.apply"
        )
        == set()
    )


def test_no_traceback_reaches_the_terminal(tmp_path: Path) -> None:
    """Even of a fault of our own: one line, and how to report it."""
    program = (
        "import llava_remap.jobs.apply as a\n"
        "def broken(*x, **y): raise RuntimeError('a fault')\na.plan = broken\n"
    )
    program += (
        "import sys\nsys.argv = ['llava-remap', 'apply', 'llava-v1.5', '--source', 'x']\n"
        "from llava_remap.cli import main\nmain()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 70
    assert "Internal error: RuntimeError: a fault" in ran.stderr
    assert f"LLAVA_REMAP_TRACEBACK=1 (llava-remap {__version__}, Python " in ran.stderr
    assert "Traceback" not in ran.stderr
