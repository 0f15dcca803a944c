"""SIGKILL, signals and full disks at every kind of moment: what looks finished is, and
`--resume` ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llava_remap.core.problem import RemapError
from llava_remap.execute import INDEX
from llava_remap.jobs.apply import apply
from llava_remap.verification import verify_folder
from llava_remap.verification.record import RECORD, read_record
from tests.conftest import CLIP, RELEASED
from tests.end_to_end.killed import Try
from tests.forks import HANGS

CLAIM = "llava_remap.partial"
RULES = "llava-v1.5"
#: Bytes of a weight file at most.
SHARD = 90_000
SOURCES = [str(RELEASED / "sharded"), f"vision_tower={CLIP}"]
#: The calls of which half is written: a weight file, the claim, any other file.
TORN = ("pwrite", "claim", "write_all")


class Jobs:
    """The process that carries jobs out, and the folder that each is to end with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # What libraries are asked is kept: here they are imported already.
        apply(RULES, SOURCES, folder / "kept", max_shard_nbytes=SHARD, verify="full")
        program = [sys.executable, "-m", "tests.end_to_end.killed", str(SHARD), RULES, *SOURCES]
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._answer()
        self.said: list[str] = []
        self.numbers = itertools.count()
        self.moments = self.carry_out(Try(str(folder / "whole")))
        self.wanted = contents(folder / "whole")
        self.weights = {name for name in self.wanted if name.endswith(".safetensors")}

    def carry_out(self, attempt: Try) -> list[str]:
        """The moments that were passed, none for a job that was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(attempt)) + "\n")
        self._process.stdin.flush()
        passed, self.said = self._answer()
        return list(passed)

    def new(self) -> Path:
        return self.folder / str(next(self.numbers))

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=HANGS)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that carries jobs out has ended"
        return json.loads(line)


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """In memory where the machine has such a folder: nothing here depends on the disk, which
    makes it slow.
    """
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("killed")
    with tempfile.TemporaryDirectory(dir=base) as folder:
        process = Jobs(Path(folder))
        yield process
        process.end()


def refuse_half_there(jobs: Jobs, folder: Path) -> None:
    """What has its name is whole; what looks finished is; what isn't, says so."""
    there = contents(folder) if folder.is_dir() else {}
    named = {name: digest for name, digest in there.items() if not name.endswith(".partial")}
    assert named.items() <= jobs.wanted.items()
    assert (INDEX not in there) or jobs.weights <= there.keys()
    assert (RECORD not in there) or there.keys() - {CLAIM} == jobs.wanted.keys()
    if there.keys() <= {CLAIM}:
        return
    assert CLAIM in there or there == jobs.wanted
    if CLAIM in there:
        with pytest.raises(RemapError) as caught:
            read_record(folder)
        assert [problem.code for problem in caught.value.problems] == ["LR505"]


def gone_on_with(jobs: Jobs, folder: Path) -> None:
    """In the end the folder is what it would have been."""
    if folder.is_dir() and contents(folder) == jobs.wanted:
        return  # killed between the last step and the end
    jobs.carry_out(Try(str(folder), resume=True))
    assert contents(folder) == jobs.wanted


def chosen(jobs: Jobs) -> list[tuple[str, int, bool]]:
    """Of every kind of call the first, the last and some between: which, its number, and whether
    half of it is written.
    """
    choose = random.Random(0)
    found = []
    for call in sorted(set(jobs.moments)):
        count = jobs.moments.count(call)
        some = choose.sample(
            range(1, count + 1), min(count, 2 if call in ("fsync", "replace") else 1)
        )
        found += [
            (call, number, torn)
            for number in sorted({1, count, *some})
            for torn in (False, True)[: 1 + (call in TORN)]
        ]
    return found


def test_every_kind_of_moment_is_there(jobs: Jobs) -> None:
    assert {*TORN, "mkdir", "truncate", "preadv", "ftruncate", "fsync", "replace", "unlink"} < set(
        jobs.moments
    )
    assert {
        "refuse_changed",
        "write_shards",
        "strict_load",
        "compare",
        "write_index",
        "record_json",
    } < set(jobs.moments)
    assert verify_folder(jobs.folder / "whole", read_record(jobs.folder / "whole")).problems == ()


def test_killed_at_every_kind_of_moment(jobs: Jobs) -> None:
    """And every fourth of them at another moment again, when it is gone on with."""
    again = random.Random(1)
    for count, (call, number, torn) in enumerate(chosen(jobs)):
        folder = jobs.new()
        passed = jobs.carry_out(Try(str(folder), call=call, number=number, torn=torn))
        assert passed == [], f"{call}, {number}: it wasn't killed"
        refuse_half_there(jobs, folder)
        if count % 4 == 0:
            call = again.choice(sorted(set(jobs.moments)))
            jobs.carry_out(
                Try(
                    str(folder),
                    resume=True,
                    call=call,
                    number=again.randint(1, 4),
                    torn=call in TORN,
                )
            )
            refuse_half_there(jobs, folder)
        gone_on_with(jobs, folder)


def killed_anywhere(jobs: Jobs, moments: random.Random) -> None:
    """By another thread, with two files written at a time, and the same again when it is gone on
    with.
    """
    folder = jobs.new()
    for resume in (False, True):
        step = moments.randint(1, len(jobs.moments))
        passed = jobs.carry_out(Try(str(folder), resume=resume, step=step, jobs=2))
        refuse_half_there(jobs, folder)
        if passed:  # it had fewer steps left, or was at its end before the other thread was
            break
    gone_on_with(jobs, folder)
    shutil.rmtree(folder)


def test_killed_anywhere(jobs: Jobs) -> None:
    moments = random.Random(2)
    for _ in range(10):
        killed_anywhere(jobs, moments)


@pytest.mark.long
def test_killed_anywhere_for_longer(jobs: Jobs) -> None:
    moments = random.Random()
    for _ in range(500):
        killed_anywhere(jobs, moments)


def ended_anywhere(jobs: Jobs, moments: random.Random, what: str) -> None:
    """What ends it in order leaves weight files that are finished and the claim, or nothing at
    all.
    """
    folder = jobs.new()
    step = moments.randint(1, len(jobs.moments))
    passed = jobs.carry_out(Try(str(folder), step=step, what=what, jobs=moments.choice((1, 2))))
    there = contents(folder) if folder.is_dir() else {}
    if passed:  # nothing that needs room came behind the step
        assert there == jobs.wanted
    elif there.keys() != jobs.wanted.keys():  # else the signal came behind the last step
        assert jobs.said == [
            {"full": "LR502", "SIGINT": "KeyboardInterrupt", "SIGTERM": "SystemExit"}[what]
        ]
        assert not folder.exists() or there.keys() - {CLAIM} <= jobs.weights
        assert not folder.exists() or there.keys() > {CLAIM}
        assert {
            name: digest for name, digest in there.items() if name != CLAIM
        }.items() <= jobs.wanted.items()
    gone_on_with(jobs, folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["full", "SIGINT", "SIGTERM"])
def test_ended_anywhere(what: str, jobs: Jobs) -> None:
    moments = random.Random(3)
    for _ in range(12):
        ended_anywhere(jobs, moments, what)


@pytest.mark.parametrize("what", ["SIGINT", "SIGTERM"])
def test_a_signal_at_the_end_leaves_all_or_what_is_finished(what: str, jobs: Jobs) -> None:
    """At each of the last moments, the removal of the claim included."""
    last = len(jobs.moments)
    for step in range(last - 4, last + 1):
        folder = jobs.new()
        jobs.carry_out(Try(str(folder), step=step, what=what))
        there = contents(folder)
        assert there == jobs.wanted or there.keys() - {CLAIM} <= jobs.weights


@pytest.mark.long
@pytest.mark.parametrize("what", ["full", "SIGINT", "SIGTERM"])
def test_ended_anywhere_for_longer(what: str, jobs: Jobs) -> None:
    moments = random.Random()
    for _ in range(300):
        ended_anywhere(jobs, moments, what)


def test_a_claim_that_is_torn_again_and_again(jobs: Jobs) -> None:
    """What is entered behind half a line counts as well."""
    folder = jobs.new()
    jobs.carry_out(
        Try(str(folder), call="claim", number=3, torn=True)
    )  # the first is what the job is
    for finished in range(1, len(jobs.weights) - 1):
        refuse_half_there(jobs, folder)
        assert len(jobs.weights & contents(folder).keys()) == finished
        jobs.carry_out(Try(str(folder), resume=True, call="claim", number=2, torn=True))
    gone_on_with(jobs, folder)
