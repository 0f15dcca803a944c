"""The command line in processes of their own, without importing it anew for each.

They are forks of a small process: the kernel counts a child's peak memory from before its exec, and
a test's process is large.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What nearly every command imports, which takes ten times as long as the rest of a refusal.
IMPORTED_ONCE = (
    "llava_remap.cli.commands",
    "llava_remap.jobs.apply",
    "llava_remap.jobs.inspect_parts",
    "llava_remap.report",
)


@dataclass(frozen=True)
class Ended:
    """A process that ran: exit code (minus the signal's number where one ended it), peak memory
    in KiB, what it printed.
    """

    code: int
    kib: int
    out: str


Forked = Callable[..., Ended]


@contextmanager
def forking(seconds: int = 600, limit: Callable[[], object] | None = None) -> Iterator[Forked]:
    """What runs the command line with the arguments it is called with.

    Args:
        seconds: of CPU, after which the kernel ends the process; on no machine does any need so
            many.
        limit: called in the process that forks them, before it is Python.
    """
    command = [sys.executable, "-m", "tests.hostile.forked", str(seconds)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=limit,
    ) as server:

        def run(*arguments: object) -> Ended:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            server.stdin.flush()
            return Ended(**json.loads(server.stdout.readline()))

        yield run


def main(seconds: int) -> None:
    """Reads a JSON list of arguments a line, and answers each with a line of JSON."""
    from llava_remap.cli import main as run

    for module in IMPORTED_ONCE:
        import_module(module)
    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line), run, seconds)), flush=True)


def _forked(arguments: list[str], run: Any, seconds: int) -> dict[str, object]:
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            sys.argv = ["llava-remap", *arguments]
            try:
                run()
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(99)
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        out.seek(0)
        text = out.read().decode("utf-8", "replace")
    return {"code": os.waitstatus_to_exitcode(status), "kib": usage.ru_maxrss, "out": text}


if __name__ == "__main__":
    main(int(sys.argv[1]))
