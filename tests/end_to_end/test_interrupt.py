"""Ctrl-C and SIGTERM at every stage of a job, each as a process of its own: nothing is left, and
no traceback is shown.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from llava_remap.core.threads import finished
from llava_remap.execute import write
from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, RELEASED, beside_progress
from tests.forks import of_commands

#: Runs the command line with one function replaced by one that reports that it is reached, and
#: waits: until it is interrupted or there is a file `go on`; in another thread, as on a busy disk,
#: until the main one has been interrupted.
DRIVER = """
import importlib, os, pathlib, signal, sys, threading, time
from llava_remap.execute.files import Gate

# What runs in a shell's background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
close, closed = Gate.close, threading.Event()

def closing(gate):
    gate.is_closed = True
    closed.set()
    close(gate)

def wait(*arguments, **named):
    os.write(1, b"reached\\n")  # in one piece: two threads may come here at once
    if threading.current_thread() is not threading.main_thread():
        closed.wait()
    else:
        while not pathlib.Path("go on").exists():
            time.sleep(0.05)
    return original(*arguments, **named)

Gate.close = closing
module, function = sys.argv[1].rsplit(".", 1)
module = importlib.import_module(module)
original = getattr(module, function)
setattr(module, function, wait)
sys.argv[1:] = sys.argv[2:]
from llava_remap.cli import main
main()
"""

APPLY = (
    "apply", "llava-v1.5", "--source", str(RELEASED / "sharded"), "--source",
    f"vision_tower={CLIP}", "--output", "deep/out",
    "--jobs", "1",
)  # fmt: skip

#: What is replaced, and so the moment at which the signal comes; how many weight files are there
#: then, begun ones included; and `--verify`.
STAGES = {
    "planning": ("llava_remap.jobs.apply.build_plan", 0, "none"),
    "checking values": ("llava_remap.jobs.job.run_value_checks", 0, "none"),
    "writing the first weights": ("llava_remap.execute.write.readable", 1, "none"),
    "loading strictly": ("llava_remap.jobs.job.strict_load", 3, "meta"),
    "before the index": ("llava_remap.jobs.run.write_index", 3, "none"),
    "between index and record": ("llava_remap.jobs.job.record_json", 3, "none"),
}
CLAIM = "deep/out/llava_remap.partial"
FINISHED = {f"deep/out/model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}


def signalled(stage: str, number: signal.Signals, *arguments: str) -> tuple[int, str, int]:
    """Return code and standard error of a job that got a signal at a stage, and how many weight
    files there were then.
    """
    with of_commands().start(DRIVER, stage, *arguments) as process:
        process.wait_for("reached\n")
        weights = len(list(Path("deep/out").glob("model-*")))
        process.send_signal(number)
    ended = process.ended()
    return ended.code, beside_progress(ended.said), weights


@pytest.fixture(autouse=True, scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The libraries' answers are in the cache, so that each process is quick."""
    apply(
        "llava-v1.5",
        [str(RELEASED / "sharded"), f"vision_tower={CLIP}"],
        tmp_path_factory.mktemp("warm") / "out",
    )


SAID = {
    signal.SIGINT: "Interrupted: this run leaves no unfinished output behind.",
    signal.SIGTERM: "Terminated.",
    signal.SIGHUP: "",
}
BEGINS = {signal.SIGINT: "Interrupted: ", signal.SIGTERM: "Terminated.\n", signal.SIGHUP: ""}
KEPT = (
    "3 of 3 weight files are finished in ./deep/out. The same command with --resume goes on "
    "from there."
)


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        *((stage, number) for stage in STAGES for number in (signal.SIGINT, signal.SIGTERM)),
        ("loading strictly", signal.SIGHUP),
    ],
)
def test_only_what_is_finished_is_left(stage: str, number: signal.Signals) -> None:
    function, weights, verify = STAGES[stage]
    code, errors, there = signalled(function, number, *APPLY, "--verify", verify)
    assert (code, there) == (128 + number, weights)
    if weights < 3:
        assert errors.strip() == SAID[number]
        assert list(Path().iterdir()) == []
    else:
        assert errors.strip() == BEGINS[number] + KEPT
        assert {str(path) for path in Path().rglob("*") if path.is_file()} == FINISHED | {CLAIM}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["planning", "checking values"])
def test_what_an_earlier_try_finished_is_told_of(stage: str, number: signal.Signals) -> None:
    signalled("llava_remap.jobs.run.write_index", signal.SIGINT, *APPLY, "--verify", "none")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, errors, there = signalled(
        STAGES[stage][0], number, *APPLY, "--verify", "none", "--resume"
    )
    assert (code, there) == (128 + number, 3)
    assert errors.strip() == BEGINS[number] + KEPT
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("other", [["--dry-run"], ["--dry-run", "--resume"], []])
def test_what_another_job_finished_is_not(other: list[str]) -> None:
    """Only a job that goes on can go on."""
    signalled("llava_remap.jobs.run.write_index", signal.SIGINT, *APPLY, "--verify", "none")
    code, errors, _ = signalled(STAGES["planning"][0], signal.SIGINT, *APPLY, *other)
    assert (code, errors.strip()) == (130, SAID[signal.SIGINT])


#: Signals go to another thread than the main one, as they may while threads are started.
ELSEWHERE = """
import signal, threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whichever_thread_the_system_wakes(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main one is waiting for another, whose disk is busy until it has heard the signal."""
    monkeypatch.setitem(globals(), "DRIVER", ELSEWHERE + DRIVER)
    code, errors, there = signalled(STAGES["writing the first weights"][0], number, *APPLY)
    assert (code, errors.strip(), there) == (128 + number, SAID[number], 1)


def test_an_interrupted_verification_leaves_the_folder() -> None:
    apply("llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], "out")
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    code, errors, _ = signalled(
        "llava_remap.verification.folder.strict_load", signal.SIGINT, "verify", "out"
    )
    assert code == 130
    assert "Traceback" not in errors
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def when_all_were_tried(files: Iterable[Future[None]]) -> Iterable[Future[None]]:
    """Of a file that failed nobody hears before there is none left to begin, and of the last one
    first.
    """
    wait(files := list(files))
    return reversed(files)


@pytest.mark.parametrize("heard", [finished, when_all_were_tried])
def test_between_two_steps_of_one_file(heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment after a file got its name. However late the other thread hears of it, no
    further file is begun.
    """
    replace, named = Path.replace, []

    def interrupted(path: Path, target: Any) -> Any:
        done = replace(path, target)
        if path.parent == Path("deep/out"):
            named.append(done.name)
            raise KeyboardInterrupt
        return done

    sources = [str(RELEASED / "sharded"), f"vision_tower={CLIP}"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        patched.setattr(write, "finished", heard)
        with pytest.raises(KeyboardInterrupt):
            apply("llava-v1.5", sources, "deep/out", jobs=1)
    assert named == ["model-00001-of-00003.safetensors"]
    assert {path.name for path in Path("deep/out").iterdir()} == {*named, "llava_remap.partial"}
    assert apply("llava-v1.5", sources, "deep/out", resume=True).reused == 1


SWALLOWED = """
import os, signal, sys, time
import llava_remap.jobs.job as job

signal.signal(signal.SIGINT, signal.default_int_handler)

def library(*arguments, **named):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        raise ImportError("cannot load module more than once per process") from None

job.strict_load = library
from llava_remap.cli import main
main()
"""


def test_a_library_that_makes_an_error_of_it() -> None:
    """As numpy does while it is imported: it is an interruption all the same, no internal error."""
    ran = of_commands().run(SWALLOWED, *APPLY)
    assert (ran.code, beside_progress(ran.said)) == (130, "")
    assert list(Path().iterdir()) == [], "nobody knows what else went wrong"


AGAIN = """
import os, signal, sys, time
from pathlib import Path
import llava_remap.jobs.run as job

signal.signal(signal.SIGINT, signal.default_int_handler)
again = [getattr(signal, name) for name in sys.argv.pop(1).split(",")]

def unlink(path, missing_ok=False, unlink=Path.unlink):
    for number in again:
        os.kill(os.getpid(), number)
    unlink(path, missing_ok)

def interrupted(*arguments, **named):
    Path.unlink = unlink
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        time.sleep(0.05)

job.write_index = interrupted
from llava_remap.cli import main
main()
"""


@pytest.mark.parametrize("again", ["SIGINT", "SIGHUP,SIGTERM,SIGINT"])
def test_more_signals_while_it_clears_up(again: str) -> None:
    ran = of_commands().run(AGAIN, again, *APPLY)
    assert (ran.code, beside_progress(ran.said).strip()) == (
        130,
        BEGINS[signal.SIGINT] + KEPT,
    )
    assert {str(path) for path in Path().rglob("*") if path.is_file()} == FINISHED | {CLAIM}


CAUGHT = """
import os, signal, sys, time
import llava_remap.jobs.job as job

signal.signal(signal.SIGINT, signal.default_int_handler)

def library(*arguments, **named):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        return []

job.strict_load = library
from llava_remap.cli import main
main()
"""


def test_a_library_that_catches_it() -> None:
    """The next report of progress raises it again."""
    ran = of_commands().run(CAUGHT, *APPLY)
    assert (ran.code, beside_progress(ran.said).strip()) == (
        130,
        BEGINS[signal.SIGINT] + KEPT,
    )
    assert {str(path) for path in Path().rglob("*") if path.is_file()} == FINISHED | {CLAIM}


def test_under_nohup() -> None:
    """Who starts it with SIGHUP ignored wants it to go on when the terminal is closed."""
    program = DRIVER.replace("SIG_DFL", "SIG_IGN")
    with of_commands().start(program, "llava_remap.jobs.run.refuse_changed", *APPLY) as process:
        process.wait_for("reached\n")
        process.send_signal(signal.SIGHUP)
        Path("go on").touch()
    assert process.ended().code == 0
    assert Path("deep/out/llava_remap.json").is_file()


def test_nothing_is_taken_down_by_the_book() -> None:
    """With torch in it, the interpreter's end alone lasts longer than a user waits."""
    program = DRIVER.replace(
        "def wait(", "import atexit\natexit.register(print, 'taken down')\n\ndef wait("
    )
    with of_commands().start(program, "llava_remap.jobs.run.write_index", *APPLY) as process:
        process.wait_for("reached\n")
        process.send_signal(signal.SIGINT)
    ran = process.ended()
    assert (ran.code, beside_progress(ran.said).strip()) == (130, BEGINS[signal.SIGINT] + KEPT)
    assert "taken down" not in ran.printed
