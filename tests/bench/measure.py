"""Run a command and read off what the kernel says it took; describe the machine.

Standard library only: the kernel counts a child's peak memory from before its exec, when it still is this process, so this
process has to stay small.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_GIB = 1 << 30
#: `ru_maxrss` is in KiB, on macOS in bytes.
_MAXRSS_NBYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run took.

    Attributes:
        wall: seconds from start to end on the clock.
        user: seconds of CPU in the program, over all its threads and the children it waited for.
        system: seconds of CPU in the kernel on its behalf; write-back that the kernel does later is not in it.
        peak_nbytes: the largest resident set of the process or any of those children.
    """

    wall: float
    user: float
    system: float
    peak_nbytes: int


class CommandError(Exception):
    """A measured command failed; the message holds what it wrote to stderr."""


def run(command: Sequence[str]) -> Usage:
    """Run a command to its end, its output thrown away. Whatever interrupts this ends the command and its children.

    Raises:
        CommandError: for any exit code but 0.
    """
    with tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
            wall = time.perf_counter() - started
            child.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if child.returncode != 0:
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip()
            raise CommandError(f"exit code {child.returncode} from {' '.join(command)}\n{said}")
    return Usage(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * _MAXRSS_NBYTES)


def machine(folder: Path, packages: Sequence[str]) -> list[str]:
    """Lines that say what the figures were measured on: processor, memory, the file system of `folder`, versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    kind = file_system(folder)
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return [
        f"machine   {_processor()}, {cores} cores, {memory:.1f} GiB memory, {platform.system()} {platform.release()}",
        f"scratch   {kind}" + (": memory, not a disk; give a folder on a disk with --scratch" if kind == "tmpfs" else ""),
        f"versions  Python {platform.python_version()}, {versions}",
    ]


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on (`ext4`), `unknown` where there is no /proc."""
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return "unknown"
    where, found = folder.resolve(), (0, "unknown")
    for line in table.read_text().splitlines():  # "36 35 98:0 /root /mount/point options … - type device options", see proc(5)
        head, _, tail = line.partition(" - ")
        mounted = Path(head.split()[4])
        if where.is_relative_to(mounted) and len(mounted.parts) >= found[0]:
            found = (len(mounted.parts), tail.split()[0])
    return found[1]


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
