"""What is shown of a job while it runs: on a terminal of any width, in a log, and in a job that
fails or is interrupted.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from llava_remap.cli.progress import Progress
from llava_remap.jobs.apply import apply, plan
from llava_remap.jobs.job import check_values
from tests.conftest import CLIP, RELEASED, beside_progress
from tests.forks import HANGS, of_commands

SOURCES = ("--source", str(RELEASED / "sharded"), "--source", f"vision_tower={CLIP}")
MB = 10**6


class Clock:
    """Seconds, as they are set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def logged(
    *steps: tuple[float, int], total: int = 1000 * MB, clock: Clock | None = None
) -> list[str]:
    """The lines in a log of a job that has handled so many MB more at these seconds."""
    out, clock = io.StringIO(), clock or Clock()
    shown = Progress(out, "writing", total, clock)
    shown.start()
    for at, amount in steps:
        clock.seconds = at
        shown.advance(amount * MB)
    shown.clear()
    return out.getvalue().splitlines()


def test_a_short_job_logs_nothing() -> None:
    assert logged(*((at / 10, 10) for at in range(99))) == []


def test_a_line_every_ten_seconds() -> None:
    lines = logged(*((float(at), 10) for at in range(1, 36)))
    assert lines == [
        "writing, 10 %: 0.1 of 1.0 GB, 10 MB/s, 0:01:30 left",
        "writing, 20 %: 0.2 of 1.0 GB, 10 MB/s, 0:01:20 left",
        "writing, 30 %: 0.3 of 1.0 GB, 10 MB/s, 0:01:10 left",
    ]


def test_the_rate_is_that_of_late() -> None:
    """Half of it at once, then 10 MB a second: what is left takes 10 s more, not half a second."""
    slow = [(1.0 + at, 10) for at in range(40)]
    assert logged((1.0, 500), *slow)[-1] == "writing, 90 %: 0.9 of 1.0 GB, 10 MB/s, 0:00:10 left"


def test_never_more_than_all() -> None:
    """As where what an earlier try had finished is damaged, and so is read and then written."""
    lines = logged((1.0, 100), (11.0, 1000))
    assert lines == ["writing, 100 %: 1.0 of 1.0 GB, 100 MB/s"]


def test_other_phases_are_named() -> None:
    """And each has a rate of its own."""
    out, clock = io.StringIO(), Clock()
    shown = Progress(out, "writing", 100 * MB, clock)
    clock.seconds = 9.0
    shown.advance(50 * MB)
    shown.phase("taking digests")
    clock.seconds = 9.5
    shown.advance(10 * MB)
    assert out.getvalue() == ""
    clock.seconds = 10.5
    shown.advance(25 * MB)
    assert out.getvalue() == "taking digests, 85 %: 85.0 of 100.0 MB, 25 MB/s, 0:00:01 left\n"
    shown.clear()
    assert shown.took == [("writing", 9.0), ("taking digests", 1.5)]


def test_a_log_hears_of_a_job_of_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, if it lasts; the time that decides it is 0 here."""
    monkeypatch.setattr("llava_remap.cli.progress._PATIENCE", 0)
    told = Event()

    class Log(io.StringIO):
        def flush(self) -> None:
            told.set()

    out = Log()
    shown = Progress(out, "planning", None)
    shown.start()
    assert told.wait(HANGS)
    shown.clear()
    assert out.getvalue() == "planning …\n"


class Slowly(int):
    """A number that lets other threads go on while it is added."""

    def __radd__(self, other: int) -> int:
        time.sleep(0.0001)
        return other + int(self)


def test_from_several_threads() -> None:
    out, clock = io.StringIO(), Clock()
    shown = Progress(out, "writing", 80_001, clock)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(shown.advance, [Slowly(100)] * 800))
    clock.seconds = 10.0
    shown.advance(1)
    assert "80.0 of 80.0 kB" in out.getvalue()
    assert "100 %" in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines that a terminal shows once this was written to it: text, ends of lines, and the
    sequences that move up, erase a line, set colours and hide the cursor. No other is allowed.
    """
    lines, row, column = [""], 0, 0
    for sequence, text in re.findall(r"\x1b\[(\??[0-9;]*[a-zA-Z])|([^\x1b])", written):
        if text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
        elif sequence.endswith("A"):
            row -= int(sequence[:-1])
        elif sequence == "2K":
            lines[row] = ""
        else:
            assert sequence.endswith("m") or sequence in ("?25l", "?25h"), sequence
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (90, "comparing with the sources ━━━━╺━━━━━━━━━━━━━━━  22% 3.1/14.1 GB 414.0 MB/s 0:00:27"),
        (60, "comparing with the sources  22% 414.0 MB/s 0:00:27"),
        (45, "comparing with the sources  22% 0:00:27"),
        (33, "comparing with the sources  22% …"),
    ],
)
def test_as_much_as_a_terminal_has_room_for(
    width: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    out, clock = Terminal(), Clock()
    shown = Progress(out, "comparing with the sources", 14_100 * MB, clock)
    shown.start()
    shown.advance(1)
    clock.seconds = 7.5
    shown.advance(3_105 * MB)
    shown._bar.refresh()
    assert screen(out.getvalue()) == [line]
    shown.clear()
    assert screen(out.getvalue()) == ["", ""]


def test_a_phase_that_counts_no_bytes_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    shown = Progress(out, "writing", 10 * MB, Clock())
    shown.advance(10 * MB)
    shown.phase("loading strictly")
    shown._bar.refresh()
    shown.start()
    [line] = screen(out.getvalue())
    assert line.endswith(" loading strictly 0:00:00")
    assert "%" not in line
    shown.phase("comparing")
    shown.advance(1)
    shown._bar.refresh()
    assert "100%" in screen(out.getvalue())[0]
    shown.clear()


#: Has the strict load last until it is interrupted.
ENDLESS = """
import time
import llava_remap.jobs.job as job

def load(*arguments):
    while True:
        time.sleep(0.05)

job.strict_load = load
"""


def on_terminal(
    *arguments: object, columns: int, interrupt: str = "", changed: str = "", **environment: str
) -> tuple[int, str, str]:
    """Return code, standard output, and all that a terminal gets on standard error; Ctrl-C once
    that has a text in it.

    Args:
        changed: a program that is run before.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from "
        "llava_remap.cli import main; main()"
    )
    with of_commands().start(
        changed + program,
        *arguments,
        environment={**os.environ, "COLUMNS": "", "LINES": "", **environment},
        stderr=theirs,
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # Linux says so when the other side is closed
            while block := os.read(ours, 1 << 16):
                seen += block
                if interrupt and interrupt in seen.decode(errors="replace"):
                    process.send_signal(signal.SIGINT)
                    interrupt = ""
        os.close(ours)
    ran = process.ended()
    return ran.code, ran.printed, seen.decode()


@pytest.mark.parametrize("columns", [80, 40])
def test_what_a_user_sees(columns: int) -> None:
    code, out, seen = on_terminal(
        "apply", "llava-v1.5", *SOURCES, "--format", "json", columns=columns, TERM="xterm"
    )
    assert code == 0
    assert json.loads(out)["result"]["verified"] == "meta"
    drawn = [screen(text)[0] for text in re.split(r"\r|\n", seen)]
    for what in (
        "planning 0:0",
        "checking values",
        "writing",
        "loading strictly",
        "writing small files",
    ):
        assert any(what in line for line in drawn), (what, drawn)
    assert [line for line in drawn if len(line) > columns] == []
    assert set(screen(seen)) == {""}, "nothing of it is left"


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "dumb", "NO_COLOR": "1"}])
def test_a_dumb_terminal_is_a_log(environment: Mapping[str, str]) -> None:
    code, _, seen = on_terminal(
        "apply", "llava-v1.5", *SOURCES, "--format", "json", columns=80, **environment
    )
    assert code == 0
    assert "\r" not in seen.replace("\r\n", "")


def test_interrupted() -> None:
    code, out, seen = on_terminal(
        "apply",
        "llava-v1.5",
        *SOURCES,
        columns=80,
        interrupt="loading strictly",
        changed=ENDLESS,
        TERM="xterm",
    )
    assert code == 130
    assert "Done" not in out
    assert out.rstrip().splitlines()[-1] == "Writing sharded-hf"
    [said] = filter(None, screen(seen))
    assert said.startswith("Interrupted: 3 of 3 weight files are finished in ./")
    assert len(list(Path().glob("*-hf/*"))) == 4, "these, and the claim"


def test_refused() -> None:
    """What is said of a problem stands on lines of its own."""
    Path("full").mkdir()
    Path("full/file").touch()
    code, out, seen = on_terminal(
        "apply", "llava-v1.5", *SOURCES, "--output", "full", columns=80, TERM="xterm"
    )
    assert (code, "LR503" in out) == (4, True)
    assert set(screen(seen)) == {""}
    code, _, seen = on_terminal("verify", "full", columns=80, TERM="xterm")
    assert code == 3
    assert "LR606" in screen(seen)[1]


def test_checks_of_values_report_every_byte(tmp_path: Path) -> None:
    job = plan(
        "llava-v1.5",
        [RELEASED / "sharded", f"vision_tower={CLIP}"],
        tmp_path / "out",
        dtype="bfloat16",
    )
    done: list[int] = []
    check_values(job, done.append)
    assert sum(done) == job.nbytes_to_check > 0


def test_verify_names_its_phases(tmp_path: Path) -> None:
    apply("llava-v1.5", [RELEASED / "sharded", f"vision_tower={CLIP}"], tmp_path / "out")
    against = ("--against", RELEASED / "sharded", "--against", f"vision_tower={CLIP}")
    code, _, seen = on_terminal("verify", tmp_path / "out", *against, columns=80, TERM="xterm")
    assert code == 0
    for what in ("comparing digests ", "loading strictly ", "comparing with the sources "):
        assert what in seen


@pytest.mark.parametrize(
    ("closed", "printed"), [("2>&-", True), (">&-", False), ("<&- >&- 2>&-", False)]
)
def test_closed_streams(closed: str, printed: bool) -> None:
    """What is printed goes nowhere, and never into a file that got a stream's number."""
    program = [
        sys.executable,
        "-c",
        "from llava_remap.cli import main; main()",
        "apply",
        "llava-v1.5",
        *SOURCES,
        "--output",
        "out",
    ]
    ran = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *program], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ("Done: ./out written" in ran.stdout) is printed
    assert beside_progress(ran.stderr) == ""
    apply("llava-v1.5", SOURCES[1::2], "open")
    weights = {path.name: path.read_bytes() for path in Path("open").glob("*.safetensors")}
    assert {path.name: path.read_bytes() for path in Path("out").glob("*.safetensors")} == weights


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize(
    ("arguments", "redirected", "code", "told"),
    [
        ("rules list", ">/dev/full", 4, "No space left on device"),
        ("--help", ">/dev/full", 4, "No space left on device"),
        ("inspect nowhere", ">/dev/full", 3, "`nowhere` doesn't exist"),
        ("rules list", ">/dev/full 2>/dev/full", 4, ""),
        ("inspect nowhere", "2>/dev/full", 3, ""),
        ("rules list", ">&-", 0, ""),
    ],
)
def test_stdout_that_fails_is_told_once(
    arguments: str, redirected: str, code: int, told: str
) -> None:
    """However little is printed: it stays in a buffer until the end, and Python ends with a
    traceback and 120 if that fails.
    """
    line = f'"$0" -c "from llava_remap.cli import main; main()" {arguments} {redirected}'
    ran = subprocess.run(
        ["sh", "-c", line, sys.executable], capture_output=True, text=True, check=False
    )
    assert ran.returncode == code, ran.stderr
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stderr.count("LR508") == (told != "" and code == 4)
