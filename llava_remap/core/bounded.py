"""Runs work on a stranger's text in a separate process with bounded time and memory, which can
write no file.

Limits inside one process can't ensure that: a single step of Python (`"a" * 10**10`, `10**10**9`)
may take all time and all memory.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from llava_remap.core.limits import no_more_processes
from llava_remap.core.problem import refuse

#: Seconds of processor time, and bytes of memory. Imports don't count.
SECONDS, NBYTES = 2, 500_000_000
#: The exit code for a lack of memory.
_NO_MEMORY = 3
#: The other process prints this before it reads the request. If it ends earlier, the stranger's
#: text isn't the cause.
_BEGUN = b"begun\n"
#: The search path is that of this process, so nothing is imported from the current folder.
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from llava_remap.core.bounded import serve; "
    "serve(sys.argv[1])"
)


class BeyondBoundsError(Exception):
    """The work took too much time or memory, or broke its process. The text completes "it …"."""


def bounded(module: str, request: Any) -> Any:
    """The answer of a module's function `answer` to a request; both are JSON.

    Processor time is limited, so the same work also ends on a busy machine.

    Args:
        module: a module of this package. The imports at its top don't count.

    Raises:
        BeyondBoundsError: `answer` hit a limit, or the process was killed.
        RemapError: LR511 if the process can't be started.
        RuntimeError: `answer` raised an error.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _START, module, *sys.path],
            input=json.dumps(request).encode(),
            capture_output=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the other
            check=False,
        )
    except BlockingIOError:  # the system can't create a process
        raise no_more_processes() from None
    if not ran.stdout.startswith(_BEGUN):
        lines = ran.stderr.decode(errors="replace").strip().splitlines()
        raise refuse(
            "LR511",
            f"the separate process for {module} ended before its work began: "
            f"{lines[-1] if lines else f'exit code {ran.returncode}'}.",
            "Check the limits of the system (`ulimit -a`) and of the container.",
        )
    if ran.returncode == 0:
        return json.loads(ran.stdout.removeprefix(_BEGUN))
    too_long = f"takes more than {SECONDS} s of processor time"
    bounds = {
        -signal.SIGXCPU: too_long,
        -signal.SIGKILL: too_long,
        _NO_MEMORY: f"takes more than {NBYTES // 1_000_000} MB of memory",
    }
    if ran.returncode in bounds or ran.returncode < 0:
        raise BeyondBoundsError(
            bounds.get(ran.returncode, f"ends the process by signal {-ran.returncode}")
        )
    raise RuntimeError(f"{module} failed: {ran.stderr.decode(errors='replace')[-2000:]}")


def serve(module: str) -> None:
    """In the other process: answer the request on standard input."""
    answer = importlib.import_module(module).answer
    request = json.load(sys.stdin.buffer)
    _limit()
    print(_BEGUN.decode(), end="", flush=True)
    try:
        text = json.dumps(answer(request))
    except MemoryError:
        sys.exit(_NO_MEMORY)
    print(text, flush=True)


def _limit() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {
        resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + 1 + SECONDS,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    statm = Path("/proc/self/statm")
    if statm.is_file():  # only Linux enforces this limit
        pages = int(statm.read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + NBYTES
    for limit, wanted in limits.items():
        soft, hard = resource.getrlimit(limit)
        given = [one for one in (wanted, soft, hard) if one != resource.RLIM_INFINITY]
        resource.setrlimit(limit, (min(given), hard))
