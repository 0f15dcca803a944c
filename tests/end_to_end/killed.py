"""Jobs that are killed or interrupted, or whose disk is full, at a chosen moment: each in a fork of
one process.

It has everything imported and the job planned. It reads a `Try` as JSON from each line of its
input, and answers with a line of JSON: the moments that were passed, none where the job was ended,
and then with what it said.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from io import FileIO
from pathlib import Path
from threading import Lock, Thread
from typing import Any

BLOCK = 4096
#: The calls that a full disk refuses.
NEED_ROOM = ("claim", "pwrite", "write_all", "ftruncate", "fsync", "mkdir")


@dataclass(frozen=True)
class Try:
    """One run of the job.

    Attributes:
        call, number: before which call it is killed, the first being 1; 0: before none.
        torn: whether half of what that call would write is written.
        step: before which of all calls, from 1, `what` comes; 0: before none.
        what: `kill`: another thread kills it, while the others go on; `full`: the disk has no room
            left from then on; `SIGINT`, `SIGTERM`: the signal.
    """

    output: str
    resume: bool = False
    call: str = ""
    number: int = 0
    torn: bool = False
    step: int = 0
    what: str = "kill"
    jobs: int = 1
    verify: str = "full"


def watch(attempt: Try) -> list[str]:
    """Count the calls that a job can be killed at, and kill it at that which was asked for.
    Gives their names, as they come.
    """
    from llava_remap.execute import files, unfinished
    from llava_remap.jobs import job, run

    passed: list[str] = []
    lock = Lock()

    def come(name: str, tear: Callable[[], Any]) -> None:
        with lock:
            passed.append(name)
            if len(passed) == attempt.step and attempt.what == "kill":
                Thread(target=os.kill, args=(os.getpid(), signal.SIGKILL)).start()
            elif len(passed) == attempt.step and attempt.what != "full":
                os.kill(os.getpid(), getattr(signal, attempt.what))
            if attempt.what == "full" and len(passed) >= attempt.step and name in NEED_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if name == attempt.call and passed.count(name) == attempt.number:
                if attempt.torn:
                    tear()
                os.kill(os.getpid(), signal.SIGKILL)

    def watched(
        owner: Any, name: str, tear: Callable[..., Any] = lambda call, *arguments: None
    ) -> None:
        call = getattr(owner, name)

        def instead(*arguments: Any, **named: Any) -> Any:
            come(name, lambda: tear(call, *arguments))
            return call(*arguments, **named)

        setattr(owner, name, instead)

    class ClaimFile(FileIO):
        def write(self, data: Any) -> int:
            come("claim", lambda: FileIO.write(self, data[: len(data) // 2]))
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            come("truncate", lambda: None)
            return super().truncate(size)

    def opened(path: Path) -> FileIO:
        come("open", lambda: None)
        with claim_file(path) as file:
            return ClaimFile(os.dup(file.fileno()), "r+")

    claim_file, unfinished._open = unfinished._open, opened
    watched(
        os,
        "pwrite",
        lambda call, file, data, offset: call(
            file, data[: len(data) // 2 // BLOCK * BLOCK], offset
        ),
    )
    watched(files, "write_all", lambda call, file, data: call(file, data[: len(data) // 2]))
    for name in ("preadv", "ftruncate", "fsync"):
        watched(os, name)
    for name in ("mkdir", "replace", "unlink"):
        watched(Path, name)
    for name in ("write_shards", "refuse_changed", "write_index"):
        watched(run, name)
    for name in ("strict_load", "compare", "record_json"):
        watched(job, name)
    return passed


def main() -> None:
    """Arguments: bytes of a weight file at most, rule file, sources."""
    from llava_remap import plan
    from llava_remap.core.problem import RemapError
    from llava_remap.jobs.job import check_values

    job = check_values(
        plan(sys.argv[2], sys.argv[3:], "nowhere", max_shard_nbytes=int(sys.argv[1]))
    )
    with tempfile.TemporaryDirectory() as folder:
        replace(
            job, output=Path(folder)
        ).run()  # the strict load's answer is kept; it would make every job slow
    print(json.dumps([[], []]), flush=True)
    for line in sys.stdin:
        attempt = Try(**json.loads(line))
        result, child_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(result)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            passed, said = watch(attempt), []
            done = replace(job, output=Path(attempt.output), resume=attempt.resume)
            try:
                done.run(verify=attempt.verify, jobs=attempt.jobs)  # type: ignore[arg-type]
            except RemapError as error:
                passed, said = [], [problem.code for problem in error.problems]
            except (KeyboardInterrupt, SystemExit) as error:
                passed, said = [], [type(error).__name__]
            os.write(child_end, json.dumps([passed, said]).encode())
            os._exit(0)
        os.close(child_end)
        ended = os.waitpid(child, 0)
        with os.fdopen(result, "rb") as file:
            answer = json.loads(file.read() or b"[[], []]")
        assert ended[1] in (0, signal.SIGKILL), f"{astuple(attempt)}: status {ended[1]}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
