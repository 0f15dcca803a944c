"""Work on what a stranger wrote, in a process of its own: it ends soon, takes bounded memory and
writes no file.

Limits inside one process can't do that: a single step of Python (`"a" * 10**10`, `10**10**9`) may
take all of the time and all of the memory there is.
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

#: Seconds of processor time, and bytes of memory, beyond what the imports took.
SECONDS, NBYTES = 2, 500_000_000
_MEGABYTE = 1_000_000
#: The exit code for want of memory.
_NO_MEMORY = 3
#: What the other side prints before it looks at the request: what ends it sooner isn't the
#: stranger's fault.
_BEGUN = b"begun\n"
#: The search path of this process comes first, so nothing of the current folder is imported.
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from llava_remap.core.bounded import serve; "
    "serve(sys.argv[1])"
)


class BeyondBoundsError(Exception):
    """The work took too much time or memory, or broke its process. The text completes "it …"."""


def bounded(module: str, request: Any) -> Any:
    """What a module's function `answer` makes of a request; both are JSON.

    The time that counts is the processor's, so the same work ends on a busy machine too.

    Args:
        module: a module of this package. What it imports at its top isn't counted.

    Raises:
        BeyondBoundsError: it hit a limit, or the process ended otherwise.
        RemapError: LR511 where the process can't be made, or couldn't begin.
        RuntimeError: `answer` raised an error.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _START, module, *sys.path],
            input=json.dumps(request).encode(),
            capture_output=True,
            start_new_session=True,  # Ctrl-C ends this process, and with it the other one
            check=False,
        )
    except BlockingIOError:  # what the system answers where no process can be made
        raise no_more_processes() from None
    if not ran.stdout.startswith(_BEGUN):
        said = ran.stderr.decode(errors="replace").strip().splitlines()
        raise refuse(
            "LR511",
            f"a process of its own for {module} ended before it began: "
            f"{said[-1] if said else f'exit code {ran.returncode}'}.",
            "See the limits of the system: `ulimit -a`; those of the container.",
        )
    if ran.returncode == 0:
        return json.loads(ran.stdout.removeprefix(_BEGUN))
    if ran.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise BeyondBoundsError(f"takes more than {SECONDS} s of processor time")
    if ran.returncode == _NO_MEMORY:
        raise BeyondBoundsError(f"takes more than {NBYTES // _MEGABYTE} MB of memory")
    if ran.returncode < 0:
        raise BeyondBoundsError(f"ends the process by signal {-ran.returncode}")
    raise RuntimeError(f"{module} failed: {ran.stderr.decode(errors='replace')[-2000:]}")


def serve(module: str) -> None:
    """The other side: answer the request on standard input."""
    answer = importlib.import_module(module).answer
    request = json.load(sys.stdin.buffer)
    _limit()
    print(_BEGUN.decode(), end="", flush=True)
    try:
        said = json.dumps(answer(request))
    except MemoryError:
        sys.exit(_NO_MEMORY)
    print(said, flush=True)


def _limit() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + SECONDS)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_CORE, 0)
    statm = Path("/proc/self/statm")
    if statm.is_file():  # other systems than Linux don't keep this limit
        _lower(
            resource.RLIMIT_AS, int(statm.read_text().split()[0]) * resource.getpagesize() + NBYTES
        )


def _lower(limit: int, wanted: int) -> None:
    soft, hard = resource.getrlimit(limit)
    given = [one for one in (wanted, soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(limit, (min(given), hard))
