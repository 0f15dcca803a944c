"""What people type who know other command lines: short options, near misses, and scripts."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava_remap.cli.commands import app
from llava_remap.target_model.wanted import WRITTEN
from tests.conftest import CLIP, MANIFESTS, RELEASED, Run

SOURCES = ("--source", str(RELEASED / "sharded"), "--source", f"vision_tower={CLIP}")
COMMANDS = sorted(str(command.name or "inspect") for command in app.registered_commands)


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("command", [*COMMANDS, "rules", "rules new"])
def test_help_fits_the_terminal_and_has_examples(
    command: str,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as ended:
        app([*command.split(), "-h"], prog_name="llava-remap")
    out = capsys.readouterr().out
    assert (ended.value.code, max(map(len, out.splitlines())) <= width) == (0, True), out
    assert out.startswith(f"Usage: llava-remap {command} ")
    if command != "rules":
        for part in (f"\n    llava-remap {command} ", "-q, --quiet", "-v, --verbose"):
            assert part in out


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (("--dtype", "bf16"), "bfloat16"),
        (("--dtype", "torch.half"), "float16"),
        (("--dtype", "float"), "float32"),
        (("--layout", "module5.6"), "module-5.6"),
        (("--vocab", "padd"), "pad"),
        (("--verify", "all"), "full"),
        (("--outptu", "x"), "--output"),
        (("--source", "tower=x"), "`vision_tower=x`"),
    ],
)
def test_did_you_mean(given: tuple[str, str], advice: str, run: Run) -> None:
    ran = run("apply", "llava-v1.5", *given)
    assert (ran.code, f"Did you mean {advice}?" in ran.err) == (2, True), ran.err


def test_a_page_is_a_report(run: Run) -> None:
    for given in (("--format", "html"), ("--format=html",)):
        ran = run("convert", "x", *given)
        assert (ran.code, "--report FILE.html" in ran.err) == (2, True), ran.err
        assert "human?" not in ran.err


def test_a_path_with_a_wrong_letter(run: Run) -> None:
    Path("runs/llava-v1.5-7b").mkdir(parents=True)
    for command in (("convert",), ("inspect",), ("apply", "llava-v1.5", "--source")):
        ran = run(*command, "runs/lava-v1.5-7b")
        assert (ran.code, "Did you mean `runs/llava-v1.5-7b`?" in ran.err) == (3, True), ran.err
    assert "Did you mean" not in run("inspect", "runs/else").err


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--lora", "--source adapter=DIR"),
        ("--vision_tower", "--source vision_tower=DIR"),
        ("--force", "Nothing is ever overwritten"),
    ],
)
def test_options_of_other_programs(option: str, advice: str, run: Run) -> None:
    ran = run("apply", "llava-v1.5", option, "x")
    assert (ran.code, advice in ran.err, "Did you mean" in ran.err) == (2, True, False)


@pytest.mark.parametrize(
    ("command", "option", "advice", "not_said"),
    [
        ("inspect", "--model", "without an option", "--source"),
        ("convert", "--checkpoint", "without an option", "--source"),
        ("convert", "--model-base", "--source model=DIR", "without"),
        ("verify", "--bf16", "All of them", "--dtype"),
        ("inspect", "--out", "All of them", "--output"),
        ("inspect", "--json", "--format json", "--source"),
    ],
)
def test_no_option_is_advised_that_a_command_lacks(
    command: str, option: str, advice: str, not_said: str, run: Run
) -> None:
    ran = run(command, "x", option, "y")
    assert (ran.code, advice in ran.err, not_said in ran.err) == (2, True, False), ran.err


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        (("apply",), "plan"),
        (("apply", "x", "--lora", "y"), "plan"),
        (("apply", "x", "--dtype", "bf16"), "plan"),
        (("apply", "x", "--jobs", "0"), "plan"),
        (("rules", "lint", "--nothing"), "lint"),
        (("revert", "x"), "reversion"),
        (("nothing",), "usage"),
        (("apply", "x", "--jobs"), "plan"),
    ],
)
def test_wrong_usage_is_json_for_scripts(
    arguments: tuple[str, ...], document: str, run: Run
) -> None:
    ran = run(*arguments, "--format=json")
    assert (ran.code, ran.json["format"]) == (2, f"llava-remap/{document}")
    assert ran.json["format_version"] == (2 if document in ("plan", "reversion") else 1)
    assert [problem["code"] for problem in ran.json["problems"]] == ["LR211"]
    assert "LR211" in ran.err


def test_a_dry_run_gives_the_command_that_writes(run: Run) -> None:
    """Quoted for a shell, and with a free folder where the default is taken."""
    shutil.copytree(RELEASED / "sharded", "my ckpt")
    Path("my ckpt-hf").mkdir()
    Path("my ckpt-hf/file").touch()
    given = ("--source", "my ckpt", "--source", f"vision_tower={CLIP}", "--dry-run")
    ran = run("apply", "llava-v1.5", *given)
    assert ran.code == 0, ran.err
    assert "Dry run: nothing was written." in ran.out
    assert "LR503" in ran.out
    command = shlex.split(ran.out.splitlines()[-1])
    assert command[0] == "llava-remap"
    assert command[-2:] == ["--output", "my ckpt-hf-2"]
    done = run(*command[1:])
    assert (done.code, "Done: ./my ckpt-hf-2 written" in done.out) == (0, True), done.err


@pytest.mark.parametrize("out", ["done/", "./done"])
def test_a_dry_run_replaces_a_folder_however_it_is_spelled(out: str, run: Run) -> None:
    given = ("convert", RELEASED / "sharded", out, *SOURCES[2:])
    assert run(*given, "--verify", "none").code == 0
    ran = run(*given, "--dry-run")
    assert ran.code == 0, ran.err
    command = shlex.split(ran.out[ran.out.index("\n  llava-remap") :].replace("\\", ""))
    assert (out in command, command[-2:]) == (False, ["--output", "done-2"])


def test_a_dry_run_of_a_manifest_asks_for_the_checkpoint(run: Run) -> None:
    manifest = MANIFESTS / "llava-v1.5-7b.json"
    ran = run("apply", "llava-v1.5", "--source", f"model={manifest}", "--dry-run")
    assert ran.out.splitlines()[-1] == "  llava-remap apply llava-v1.5 --source model=CHECKPOINT"


def test_quiet_and_verbose(run: Run) -> None:
    quiet = run("apply", "llava-v1.5", *SOURCES, "-q", "-o", "out")
    lines = quiet.out.splitlines()
    assert lines[-1].startswith("Done: ./out written")
    assert all(line.startswith("  LR") for line in lines[:-1])
    verbose = run("apply", "llava-v1.5", *SOURCES, "-v", "--dry-run")
    assert "  model.layers.1.self_attn.rotary_emb.inv_freq\n" in verbose.out
    assert "planning: " in verbose.err
    assert "{0..1}" in run("apply", "llava-v1.5", *SOURCES, "--dry-run").out


def test_problems_stand_before_the_lists(run: Run) -> None:
    ran = run("apply", "llava-v1.5", *SOURCES[:2], "--source", f"vision_tower={RELEASED / 'bin'}")
    assert ran.code
    text = ran.out or ran.err
    assert "LR" in text.split("Sources")[0]
    assert "omplete:" not in text


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("llava-remap apply llava-v1.", "llava-v1.5"),
        ("llava-remap convert ./x --rules llava-v1.", "llava-v1.5"),
        ("llava-remap apply llava-v1.5 --layout m", "\n".join(WRITTEN[1:])),
        ("llava-remap apply llava-v1.5 --dtype b", "bfloat16"),
        ("llava-remap apply llava-v1.5 --source vis", "vision_tower="),
        ("llava-remap apply video-llava --source vid", "video_tower="),
        ("llava-remap convert ./x --source pro", "projector="),
        (
            "llava-remap convert x --rules llava-v1.5 --source vision_tower=to",
            "vision_tower=tower/",
        ),
        ("llava-remap convert x --source model=tower/", "model=tower/config.json"),
        ("llava-remap convert x --source model=gone/", ""),
    ],
)
def test_a_shell_completes_names_and_values(words: str, offered: str) -> None:
    """Without torch: a shell waits for it."""
    Path("tower").mkdir()
    Path("tower/config.json").touch()
    Path("tower/.hidden").touch()
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
        "sys.argv = ['llava-remap']\nfrom llava_remap.cli import main\nmain()"
    )
    asked = {"_LLAVA_REMAP_COMPLETE": "complete_bash", "COMP_WORDS": words}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **asked, "COMP_CWORD": str(len(words.split()) - 1)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout.strip(), ran.stderr) == (offered, "False")
