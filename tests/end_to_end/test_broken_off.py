"""Interrupted jobs: a full disk, an error, a source that changes, Ctrl-C, another job. Each gives a
clear message and does no damage.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_remap import Job, plan
from llava_remap.core.problem import RemapError
from llava_remap.execute import writer
from llava_remap.execute.unfinished import CLAIM
from llava_remap.jobs.apply import apply
from llava_remap.verification.record import RECORD, read_record
from tests.conftest import CLIP, RELEASED, Ran, Run, beside_progress, largest_file
from tests.forks import HANGS, MAIN, Running, of_commands

SOURCES = ("--source", RELEASED / "sharded", "--source", f"vision_tower={CLIP}")
COMMAND = ("apply", "llava-v1.5", *SOURCES, "--verify", "none")
WEIGHTS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _sources_stay() -> Iterator[None]:
    """Whatever happens, what is read isn't written."""
    before = [contents(folder) for folder in (RELEASED / "sharded", CLIP)]
    yield
    assert [contents(folder) for folder in (RELEASED / "sharded", CLIP)] == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    apply("llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], folder, verify="none")
    return contents(folder)


def ends_well(run: Run, whole: dict[str, str], folder: Path = Path("out")) -> None:
    """What was left is gone on with."""
    ran = run(*COMMAND, "--output", folder, "--resume")
    assert ran.code == 0, ran.err
    assert contents(folder) == whole


def refuse_stray(folder: Path, ran: Ran) -> None:
    """There is nothing, and it is said; or finished weight files with the claim, and how to go
    on is said.
    """
    if not folder.exists():
        assert "No output remains." in ran.err
        return
    there = {path.name for path in folder.iterdir()}
    assert CLAIM in there
    assert there - {CLAIM} <= set(WEIGHTS)
    assert there - {CLAIM}
    assert (
        f"{len(there) - 1} of 3 weight files are finished in ./{folder}. The same command with "
        "--resume" in ran.err.replace("././", "./")
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB: the weights of 310 kB have room, with the other files they have
    not.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if (ran := subprocess.run(mount, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(ran.stderr.strip())
    os.chdir(folder)
    yield folder
    os.chdir(tmp_path)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("taken", [0, 150_000, 250_000, 400_000])
def test_a_full_disk(
    taken: int, small_disk: Path, run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fills up while the job runs: there was room when it was planned, and is again when it
    is gone on with.
    """
    plenty = shutil.disk_usage("/")._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: plenty)
    (small_disk / "else").write_bytes(bytes(taken))
    ran = run(*COMMAND, "--output", "out")
    assert ran.code == 4
    assert "LR502" in ran.err
    assert "the disk filled up while" in re.sub(r"\s+", " ", ran.err)
    refuse_stray(Path("out"), ran)
    (small_disk / "else").unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    ends_well(run, whole)


def test_it_is_refused_before_it_is_full(small_disk: Path, run: Run) -> None:
    ran = run(*COMMAND, "--output", "out")
    assert ran.code == 4
    assert "LR502" in ran.out + ran.err
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("most", [60_000, 10_000, 1])
def test_a_limit_on_the_size_of_files(most: int, run: Run, whole: dict[str, str]) -> None:
    with largest_file(most):
        ran = run(*COMMAND, "--output", "out")
    said = re.sub(r"\s+", " ", ran.err)
    assert ran.code == 4
    assert "LR508" in said
    assert "became larger than its file system or `ulimit -f` allows" in said
    refuse_stray(Path("out"), ran)
    ends_well(run, whole)


def test_a_limit_on_the_size_of_files_that_are_tried_first(
    run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAVA_REMAP_CACHE", str(tmp_path / "cache"))
    with largest_file(5_000):
        ran = run(*COMMAND, "--output", "out")
    said = re.sub(r"\s+", " ", ran.out + ran.err)
    assert (ran.code, "LR508" in said, Path("out").exists()) == (4, True, False), said
    assert (
        f"are tried in {tempfile.gettempdir()} first, but nothing can be written there: File too "
        "large." in said
    )
    ends_well(run, whole)


def test_no_folder_for_temporary_files(
    run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as meanwhile:
        meanwhile.setenv("LLAVA_REMAP_CACHE", str(tmp_path / "cache"))
        meanwhile.setattr(
            tempfile, "tempdir", "/proc/self/fdinfo"
        )  # even root can't make a folder there
        ran = run(*COMMAND, "--output", "out")
    said = re.sub(r"\s+", " ", ran.out + ran.err)
    assert (ran.code, "LR508" in said, Path("out").exists()) == (4, True, False), said
    assert "are tried in /proc/self/fdinfo first, but nothing can be written there" in said
    ends_well(run, whole)


@pytest.mark.parametrize("number", [1, 20])
def test_a_read_error(
    number: int, run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, reads = os.preadv, []

    def failing(file: int, views: Any, offset: int) -> int:
        reads.append(file)
        if len(reads) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(file, views, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing)
        ran = run(*COMMAND, "--output", "out", "--jobs", "1")
    assert ran.code == 3
    assert "LR102" in ran.err
    assert re.search(
        r"pytorch_model-\S+\.bin` can't be read: Input/output error", re.sub(r"\s+", " ", ran.err)
    )
    refuse_stray(Path("out"), ran)
    ends_well(run, whole)


def test_no_memory_for_a_buffer(
    run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: Any) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(writer, "mmap", none)
        ran = run(*COMMAND, "--output", "out")
    assert ran.code == 4
    assert "LR501 not enough memory the machine has not enough free memory." in re.sub(
        r"\s+", " ", ran.err
    )
    refuse_stray(Path("out"), ran)
    ends_well(run, whole)


@pytest.mark.parametrize("call", ["fsync", "ftruncate", "pwrite"])
@pytest.mark.parametrize("number", [1, 2, 6])
def test_a_write_error(
    call: str, number: int, run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = getattr(os, call), []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        ran = run(*COMMAND, "--output", "out", "--jobs", "1")
    if len(calls) < number:
        assert (ran.code, contents(Path("out"))) == (0, whole)
        return
    assert ran.code == 4
    assert re.search(r"LR508.* out(/\S+)?: Input/output error", re.sub(r"\s+", " ", ran.err))
    refuse_stray(Path("out"), ran)
    ends_well(run, whole)


def append(file: Path) -> None:
    with file.open("ab") as end:
        end.write(b"more")


def replace(file: Path) -> None:
    file.with_suffix(".new").write_bytes(file.read_bytes())
    file.with_suffix(".new").replace(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "appended to": append,
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "replaced": replace,
    "touched": lambda file: os.utime(file, (0, 0)),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("when", [1, 12])
def test_a_source_that_changes_while_it_is_read(
    how: str, when: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of it is good for nothing, so nothing stays."""
    shutil.copytree(RELEASED / "sharded", "source")
    preadv, reads = os.preadv, []

    def changing(file: int, views: Any, offset: int) -> int:
        reads.append(file)
        if len(reads) == when:
            CHANGES[how](Path("source/pytorch_model-00001-of-00002.bin"))
        return preadv(file, views, offset)

    monkeypatch.setattr(os, "preadv", changing)
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        "source",
        *SOURCES[2:],
        "--verify",
        "none",
        "--output",
        "out",
        "--jobs",
        "1",
    )
    assert ran.code == 3
    assert re.search(r"LR10[02]", ran.err)
    assert "pytorch_model-00001-of-00002.bin" in ran.err
    assert "No output remains." in ran.err
    assert not Path("out").exists()


SLOW = """
import os, select, signal, sys
from llava_remap.execute.files import Gate
signal.signal(signal.SIGINT, signal.default_int_handler)
replace, close = __import__("pathlib").Path.replace, Gate.close

def slow(path, target):
    if target.name == name:
        os.write(1, b"reached\\n")
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            pass
    return replace(path, target)

def closing(gate):
    os.write(1, b"closing\\n")  # in one piece, whichever threads come here at once
    close(gate)

Gate.close = closing
__import__("pathlib").Path.replace = slow
name = sys.argv.pop(1)
from llava_remap.cli import main
main()
"""


def started(name: str, *arguments: object) -> Running:
    """A job in a process of its own, that waits for a line of input, or its end, before a file gets
    its name.

    It says `reached` when it does, and `closing` when it begins to clear up.
    """
    process = of_commands().start(SLOW, name, *COMMAND, "--output", "out", *arguments)
    process.wait_for("reached\n")
    return process


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", [WEIGHTS[1], "config.json", RECORD])
def test_two_jobs_on_one_output(name: str, resume: bool, run: Run, whole: dict[str, str]) -> None:
    """The second is refused, and the first comes to its end as if there were no other."""
    with started(name) as first:
        ran = run(*COMMAND, "--output", "out", *["--resume"] * resume)
        assert ran.code == 4
        assert "another job writes into out" in ran.out + ran.err
        checked = run("verify", "out")
        assert (checked.code, "LR505" in checked.err) == (4, True)
        done = first.ended(b"\n")
    assert (done.code, beside_progress(done.said)) == (0, "")
    assert contents(Path("out")) == whole


def test_two_jobs_that_begin_at_once(whole: dict[str, str]) -> None:
    """However they come: one ends well or, if one was done before the other looked, both say
    what is so.
    """
    jobs = [of_commands().start(MAIN, *COMMAND, "--output", "deep/out") for _ in range(3)]
    told = [(ran.printed, ran.said, ran.code) for ran in [job.ended() for job in jobs]]
    assert sorted(code for *_, code in told) == [0, 4, 4], told
    assert all("LR503" in out + errors for out, errors, code in told if code == 4)
    assert contents(Path("deep/out")) == whole


@pytest.mark.parametrize(("name", "kept"), [(WEIGHTS[0], 1), ("config.json", 3), (RECORD, 3)])
def test_ctrl_c(name: str, kept: int, run: Run, whole: dict[str, str]) -> None:
    """It is heard while the disk is still busy, which it is until the input ends."""
    with started(name, "--jobs", "1") as job:
        assert job.stdout is not None
        never = threading.Timer(HANGS, job.send_signal, [signal.SIGKILL])
        never.daemon = True
        never.start()
        job.send_signal(signal.SIGINT)
        assert job.stdout.readline() == b"closing\n"
        never.cancel()
    ran = job.ended()
    assert ran.code == 130
    assert "Traceback" not in ran.said
    assert {path.name for path in Path("out").iterdir()} == {CLAIM, *WEIGHTS[:kept]}
    left = (
        f"{kept} of 3 weight files are finished in ./out. The same command with --resume goes "
        "on from there."
    )
    assert beside_progress(ran.said).strip() == f"Interrupted: {left}"
    ends_well(run, whole)


@pytest.mark.parametrize("number", range(1, 18, 3))
def test_ctrl_c_again_while_it_is_cleared_up(
    number: int, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last moment, with everything there but the claim's end; what is left is still
    called unfinished.
    """
    replace, unlink = Path.replace, Path.unlink
    unlinked = 0

    def named(path: Path, target: Path) -> Path:
        done = replace(path, target)
        if target.name == RECORD:
            raise KeyboardInterrupt
        return done

    def again(path: Path, missing_ok: bool = False) -> None:
        nonlocal unlinked
        unlinked += 1
        if unlinked == number:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", named)
        patch.setattr(Path, "unlink", again)
        with pytest.raises(KeyboardInterrupt):
            apply(
                "llava-v1.5",
                [str(RELEASED / "sharded"), f"vision_tower={CLIP}"],
                "out",
                verify="none",
            )
    there = contents(Path("out"))
    assert {CLAIM, *WEIGHTS} <= there.keys()
    with pytest.raises(RemapError, match=r"^LR505"):
        read_record(Path("out"))
    apply(
        "llava-v1.5",
        [str(RELEASED / "sharded"), f"vision_tower={CLIP}"],
        "out",
        verify="none",
        resume=True,
    )
    assert contents(Path("out")) == whole


#: The modules that are responsible for the files that a job leaves.
CAREFUL = ("core/files.py", "execute/files.py", "execute/unfinished.py")


def interrupted_on_line(planned: Job, number: int) -> bool:
    """Whether a job was interrupted on the so many-th line of the code that answers for what is
    left; else it has ended.
    """
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(CAREFUL):
            return None
        lines += event == "line"
        if lines == number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        planned.run(verify="none", jobs=1)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_interrupted_between_any_two_lines(whole: dict[str, str]) -> None:
    """In what is left nothing looks finished that isn't, and it can be gone on with."""
    sources, out = [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], Path("out")
    planned = plan("llava-v1.5", sources, out)
    number = 1
    while interrupted_on_line(planned, number):
        there = {path.name for path in out.iterdir()} if out.exists() else set()
        assert there <= {CLAIM, *WEIGHTS} or there - {CLAIM} == whole.keys(), number
        assert not there or CLAIM in there or there == whole.keys(), number
        if there != whole.keys():
            apply("llava-v1.5", sources, out, verify="none", resume=True)
        assert contents(out) == whole, number
        shutil.rmtree(out)
        number += 19
    assert number > 100
    assert contents(out) == whole
