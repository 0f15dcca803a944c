"""`llava-remap convert`: one checkpoint, several, a person who is asked."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import llava_remap.cli.convert as command
from llava_remap.cli import output
from llava_remap.core import RemapError, refuse
from llava_remap.jobs.conversions import outputs_in
from llava_remap.source.hub import Repository, Snapshot, download, downloading_once
from tests.conftest import CLIP, MANIFESTS, RELEASED, TINY, Ran, Run

TOWER = ("--source", f"vision_tower={CLIP}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


def folders(*names: str, damaged: str = "") -> list[str]:
    """Copies of a checkpoint; one of them is cut off."""
    for name in names:
        shutil.copytree(RELEASED / "safetensors", name)
        if name == damaged:
            os.truncate(Path(name, "model.safetensors"), 3000)
    return [*names]


def documents(ran: Ran) -> list[Any]:
    return [json.loads(line) for line in ran.out.splitlines()]


def test_one_checkpoint(run: Run) -> None:
    [source] = folders("run/checkpoint-5")
    ran = run("convert", source, *TOWER, "--log", "log")
    assert ran.code == 0, ran.err
    assert "llava-v1.5 takes 25 of 25 names" in ran.out
    assert "nothing was written" not in ran.out
    assert "vllm serve ./run-checkpoint-5-hf" in ran.out
    assert Path("run-checkpoint-5-hf", "llava_remap.json").is_file()
    lines = Path("log").read_text().splitlines()
    assert all(map(TIME.match, lines))
    assert "llava-v1.5" in lines[1]
    assert "LR315" in lines[-1]


def test_where_it_is_written(run: Run) -> None:
    [source] = folders("in")
    assert run("convert", source, "second", *TOWER, "--verify", "none").code == 0
    assert run("convert", source, "-o", "option", *TOWER, "--verify", "none").code == 0
    assert Path("second/config.json").read_bytes() == Path("option/config.json").read_bytes()


def test_a_note_on_what_the_folder_lacks_is_whole(run: Run) -> None:
    [source] = folders("in")
    for file in Path("in").glob("*token*"):
        file.unlink()
    ran = run("convert", source, *TOWER, "--dry-run")
    [note] = [line for line in ran.out.splitlines() if "LR408" in line]
    assert "--source language_model=" in note


def test_quiet_prints_a_note_on_what_the_folder_lacks_once(run: Run) -> None:
    [source] = folders("in")
    for file in Path("in").glob("*token*"):
        file.unlink()
    ran = run("convert", source, *TOWER, "-q", "--verify", "none")
    assert (ran.code, ran.out.count("LR408")) == (0, 1)


def test_an_output_that_is_given_twice_is_told_as_that(run: Run) -> None:
    [source] = folders("in")
    ran = run("convert", source, "one", "-o", "two")
    assert (ran.code, "given twice: one and --output two" in ran.err) == (2, True)


def test_a_refused_plan_has_its_reasons_above_and_the_whole_command_below(run: Run) -> None:
    [source] = folders("in")
    Path("in/tokenizer_config.json").write_text('{"broken')
    ran = run("convert", source, *TOWER, "--dry-run", "--format", "json")
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR113", "LR320"]
    command = f"llava-remap convert {source} --rules llava-v1.5 {' '.join(map(str, TOWER))}"
    assert ran.json["problems"][1]["fix"].endswith(command)


@pytest.mark.parametrize(
    "arguments",
    [
        ("a", "b"),
        ("a", "b", "c"),
        ("a", "out", "-o", "out"),
        ("a", "-o", "out", "--output-dir", "o"),
    ],
)
def test_arguments_that_contradict_each_other(arguments: tuple[str, ...], run: Run) -> None:
    folders("a", "b")
    ran = run("convert", *arguments, *TOWER)
    assert ran.code == 2
    assert "--output-dir" in ran.err
    assert not Path("o").exists()


def test_a_refused_one_has_a_report_too(run: Run) -> None:
    ran = run("convert", CLIP, "--report", "r.json", "--format", "json")
    assert ran.code == 1
    assert ran.json == json.loads(Path("r.json").read_text())
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR320"]


def test_a_damaged_one_does_not_stop_the_others(run: Run) -> None:
    sources = folders("a", "b", "c", damaged="b")
    ran = run(
        "convert", *sources, *TOWER, "--output-dir", "out", "--format", "json", "--log", "log"
    )
    assert ran.code == 3
    *plans, summary = documents(ran)
    assert [plan["complete"] for plan in plans] == [True, False, True]
    assert summary["format"] == "llava-remap/summary"
    assert summary["exit"] == 3
    states = {one["source"]: one["state"] for one in summary["checkpoints"]}
    assert states == {"a": "converted", "b": "refused", "c": "converted"}
    assert [one["exit"] for one in summary["checkpoints"]] == [0, 3, 0]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a-hf", "a-hf.json", "b-hf.json", "c-hf", "c-hf.json",
    ]  # fmt: skip
    assert json.loads(Path("out/b-hf.json").read_text()) == plans[1]
    assert json.loads(Path("out/c-hf.json").read_text()) == plans[2]
    log = Path("log").read_text()
    assert "LR102" in log
    assert "2 of 3" in log
    human = run("convert", *sources, *TOWER, "--output-dir", "again", "--verify", "none")
    assert human.code == 3
    summary = human.out[human.out.index("Summary") :]
    assert re.findall(r"converted|refused|LR\d+", summary) == [
        "converted", "refused", "LR102", "converted",
    ]  # fmt: skip


def test_what_is_finished_is_not_done_again(run: Run) -> None:
    sources = folders("a", "b", damaged="b")
    again = ("convert", *sources, *TOWER, "--output-dir", "out", "--resume")
    assert run(*again).code == 3
    written = {path: path.stat().st_mtime_ns for path in Path("out/a-hf").iterdir()}
    shutil.copy(RELEASED / "safetensors" / "model.safetensors", "b")
    ran = run(*again)
    assert ran.code == 0, ran.out + ran.err
    summary = ran.out[ran.out.index("Summary") :]
    assert re.findall(r"nothing to do|converted", summary) == ["nothing to do", "converted"]
    assert {path: path.stat().st_mtime_ns for path in Path("out/a-hf").iterdir()} == written
    assert Path("out/b-hf/llava_remap.json").is_file()


def test_the_report_of_a_finished_one_stays(run: Run) -> None:
    sources = folders("a", "b", damaged="b")
    several = ("convert", *sources, *TOWER, "--output-dir", "out", "--verify", "none")
    assert run(*several).code == 3
    whole, refused = Path("out/a-hf.json"), Path("out/b-hf.json")
    before = whole.read_bytes()
    assert "result" in json.loads(before)
    for options in ((), ("--resume",), ("--resume", "--dtype", "float32")):
        refused.unlink()
        run(*several, *options)
        assert whole.read_bytes() == before
        assert json.loads(refused.read_text())["problems"][0]["code"] == "LR102"
    whole.unlink()
    run(*several, "--resume")
    assert json.loads(whole.read_text())["result"]["reused"]


@pytest.mark.parametrize("lines", [True, False])
def test_one_whose_report_fails_is_converted(
    lines: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, tries = output.write_report, []

    def failing(path: Path, content: Any) -> None:
        tries.append(path)
        if len(tries) % 2 == 0:
            raise refuse("LR508", f"{path} can't be written.", "")
        write(path, content)

    monkeypatch.setattr(output, "write_report", failing)
    [source] = folders("a")
    given = ("convert", source, *TOWER, "--output-dir", "out", "--verify", "none", "--log", "log")
    ran = run(*given, *(("--format", "json") if lines else ()))
    assert ran.code == 4
    assert "is finished, but has no report" in ran.err
    assert "a: converted, exit 4" in Path("log").read_text()
    assert "LR508" in Path("log").read_text()
    if lines:
        [one] = documents(ran)[-1]["checkpoints"]
        assert (one["state"], one["exit"], one["report"]) == ("converted", 4, None)
        assert [problem["code"] for problem in one["problems"]] == ["LR508"]
    else:
        summary = ran.out[ran.out.index("Summary") :]
        assert re.findall(r"refused|converted|LR508", summary) == ["converted", "LR508"]


def test_a_finished_one_is_given_again(run: Run) -> None:
    [source] = folders("a")
    again = ("convert", source, "out", *TOWER, "--verify", "none")
    assert run(*again).code == 0
    refused = run(*again)
    assert (refused.code, "LR503" in refused.out, "add --resume" in refused.out.lower()) == (
        4, True, True,
    )  # fmt: skip
    ran = run(*again, "--resume")
    assert (ran.code, "Nothing to do" in ran.out, "Writing" in ran.out) == (0, True, False), ran.out
    assert "Writing" in run("convert", source, "new", *TOWER, "--verify", "none", "--resume").out


def test_one_name_for_two_outputs_is_refused_before_anything_is_written(run: Run) -> None:
    sources = folders("x/model", "y/model")
    several = ("convert", *sources, *TOWER, "--output-dir", "out")
    ran = run(*several)
    assert ran.code == 2
    assert "x/model and y/model" in ran.err
    for wrong in ((), ("--nothing",)):
        [refused] = documents(run(*several, *wrong, "--format", "json"))
        assert refused["complete"] is False
    assert not Path("out").exists()
    with pytest.raises(RemapError):  # as some file systems see them
        outputs_in(Path("out"), ["a/Model", "b/model"])


def test_a_folder_for_all_that_cannot_be_made(run: Run) -> None:
    sources = folders("a", "b")
    Path("file").touch()
    ran = run("convert", *sources, *TOWER, "--output-dir", "file", "--format", "json")
    *plans, summary = documents(ran)
    assert ran.code == summary["exit"] == 4
    assert [plan["problems"][0]["code"] for plan in plans] == ["LR508", "LR508"]
    assert [one["problems"] for one in summary["checkpoints"]] == [p["problems"] for p in plans]


@pytest.mark.parametrize("source", ["circle", "~nobody-is-called-so/x", "x" * 5000])
def test_paths_that_the_system_refuses(source: str, run: Run) -> None:
    folders("in")
    Path("circle").symlink_to("circle")
    assert run("convert", source).code in (2, 3)
    assert run("convert", "in", "-o", "out", "--log", source + "/log", "--dry-run").code == 4
    assert run("convert", "in", source, *TOWER).code in (2, 4)
    ran = run("convert", "in", *TOWER, "--dry-run", "--report", source + "/r.json")
    assert (ran.code, "LR508" in ran.err) == (4, True)


def test_reports_of_several_have_a_name_each(run: Run) -> None:
    sources = folders("a", "b")
    several = ("convert", *sources, *TOWER, "--output-dir", "out", "--dry-run", "--report")
    ran = run(*several, "r.json")
    assert ran.code == 2
    assert "{name}" in ran.err
    assert run(*several, "reports/{name}.html").code == 0
    assert sorted(path.name for path in Path("reports").iterdir()) == ["a-hf.html", "b-hf.html"]
    assert not Path("out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interruption_keeps_what_is_finished(
    error: type[BaseException], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption ends the command; an error that nobody foresaw ends it after the others."""
    sources, real = folders("a", "b", "c"), output.carry_out

    def carry_out(job: Any, **options: Any) -> Any:
        if job.output.name == "b-hf":
            raise error(143)
        return real(job, **options)

    monkeypatch.setattr(command, "carry_out", carry_out)
    several = ("convert", *sources, *TOWER, "--output-dir", "out", "--verify", "none")
    if error is ValueError:
        with pytest.raises(ValueError, match="143"):
            run(*several, "--log", "log")
    else:
        ran = run(*several, "--log", "log")
        assert ran.code == {KeyboardInterrupt: 130, SystemExit: 143}[error]
        assert re.findall(r"converted|interrupted|not begun", ran.out) == [
            "converted", "interrupted", "not begun",
        ]  # fmt: skip
        ended = run(*several, "--format", "json")
        assert ended.code == ran.code == documents(ended)[-1]["exit"]
    assert Path("out/a-hf/llava_remap.json").is_file()
    assert Path("out/c-hf").is_dir() == (error is ValueError)
    assert (
        Path("log")
        .read_text()
        .splitlines()[-1]
        .endswith(f"{1 + (error is ValueError)} of 3 without a problem")
    )


def test_a_person_is_asked_for_the_tower(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real terminal; `run` itself has none, and is refused."""
    [source] = folders("in")
    ran = run("convert", source)
    assert ran.code == 3
    assert "llava-remap convert in --source vision_tower=DIR" in ran.err
    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr(command, "_is_terminal", lambda: True)
        os.write(keyboard, f"nowhere\n{CLIP}\n".encode())
        monkeypatch.setattr(command, "_answer", stdin.readline)
        ran = run("convert", source, "out")
    os.close(keyboard)
    assert ran.code == 0, ran.err
    assert ran.err.count("vision_tower (") == 2
    assert "LR100" in ran.err
    record = json.loads(Path("out/llava_remap.json").read_text())
    assert record["sources"]["vision_tower"]["location"] == str(CLIP)


def test_apply_with_a_checkpoint_leads_to_it(run: Run) -> None:
    [source] = folders("in")
    ran = run("apply", source, *TOWER)
    assert ran.code == 2
    assert f"llava-remap convert in --source vision_tower={CLIP}" in ran.err
    assert f"llava-remap apply llava-v1.5 --source model=in --source vision_tower={CLIP}" in ran.err
    Path("empty").mkdir()
    assert "llava-remap inspect empty" in run("apply", "empty").err
    assert "llava-remap convert me/llava" in run("apply", "me/llava").err
    assert "neither a file nor a shipped" in run("apply", "llava-v1.9").err


def test_two_rule_files_that_fit(run: Run) -> None:
    ran = run("convert", MANIFESTS / "llava-interleave-qwen-0.5b.released.json")
    assert ran.code == 2
    for rules in ("llava-interleave", "llava-interleave-onevision"):
        assert f"--rules {rules}" in ran.err
        assert f"    {rules}  Llava" in ran.err


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[download.__module__]
    asked = []

    def answer(repository: Repository, use: Any, name: str, offline: bool) -> Snapshot:
        asked.append((repository.id, *sorted(use)))
        return Snapshot(Path(), repository.id, "0" * 40, (), cached=False)

    monkeypatch.setattr(module, "_download", answer)
    me = Repository("me/tower")
    with downloading_once():
        for use in (("config",), ("config",), ("config", "tensors")):
            download(me, use, name="vision_tower")
    download(me, ("config",), name="vision_tower")
    assert asked == [
        ("me/tower", "config"),
        ("me/tower", "config", "tensors"),
        ("me/tower", "config"),
    ]


def test_an_adapter(run: Run) -> None:
    ran = run(
        "convert", TINY / "llava-v1.5-lora", "out", *TOWER, "--source", f"model={RELEASED}/bin"
    )
    assert ran.code == 0, ran.err
    assert "pairs of adapter into 14 tensors" in ran.out


@pytest.mark.parametrize("log", ["out/log", "llava/config.json", "llava/log", "foreign"])
def test_a_log_is_no_file_of_a_source_or_of_the_output(run: Run, log: str) -> None:
    shutil.copytree(RELEASED / "sharded", "llava")
    Path("foreign").write_text("a file of somebody else")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    ran = run("convert", "llava", "out", *TOWER, "--log", log)
    assert ran.code == 4
    assert "LR508" in ran.err
    assert "Give another --log." in ran.err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_the_choice_is_in_every_report(run: Run) -> None:
    """Why this rule file, and how each source was found."""
    folders("a")
    shutil.copytree(CLIP, "clip-vit-large-patch14-336")
    reports = ("--report", "r.json", "--log", "log")
    ran = run("convert", "a", "--dry-run", "--format", "json", *reports)
    assert ran.json == json.loads(Path("r.json").read_text())
    choice = ran.json["choice"]
    assert choice["reason"].startswith("takes 25 of 25 names")
    assert choice["found"]["model"] == "given"
    beside = choice["found"]["vision_tower"]
    assert beside.startswith("a folder beside the checkpoint")
    for detail in (["-v"], ["--report", "r.html"]):
        shown = run("convert", "a", "--dry-run", *detail).out
        assert choice["reason"] in shown
        assert beside in shown
        assert ("read: config.json" in shown) == (detail == ["-v"])
    page = Path("r.html").read_text()
    assert choice["reason"] in page
    assert beside in page
    assert f"vision_tower: clip-vit-large-patch14-336 ({beside})" in Path("log").read_text()
    given = ("--source", "a", "--source", "vision_tower=clip-vit-large-patch14-336")
    assert "choice" not in run("apply", "llava-v1.5", *given, "--dry-run", "--format", "json").json


@pytest.mark.parametrize("report", ["r.json", "r.html"])
def test_a_refusal_while_values_are_checked_is_in_the_report(
    report: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders("a")

    def changed(*given: Any) -> Any:
        raise refuse("LR102", "a/model.safetensors changed.")

    monkeypatch.setattr("llava_remap.jobs.job.run_value_checks", changed)
    ran = run("convert", "a", *TOWER, "--format", "json", "--report", report)
    assert ran.code == 3
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR102"]
    assert "LR102" in Path(report).read_text()
    assert not Path("a-hf").exists()
