"""Run a command and read off what the kernel says it took; put files into the page cache or out of
it; describe the machine.

Standard library only: the kernel counts a child's peak memory from before its exec, when it still
is this process, so this process has to stay small.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

_GIB = 1 << 30
#: `ru_maxrss` is in KiB, on macOS in bytes.
_MAXRSS_NBYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What one run took.

    Attributes:
        wall: seconds from start to end on the clock.
        user: seconds of CPU in the program, over all its threads and the children it waited for.
        system: seconds of CPU in the kernel on its behalf; write-back that the kernel does later is
            not in it.
        peak_nbytes: the largest resident set of the process or any of those children.
    """

    wall: float
    user: float
    system: float
    peak_nbytes: int


class CommandError(Exception):
    """A measured command failed; the message holds what it wrote to stderr."""


def run(command: Sequence[str], stdout: IO[str] | None = None) -> Usage:
    """Run a command to its end, its output into an open file or thrown away.

    Whatever interrupts this ends the command and its children.

    Raises:
        CommandError: for any exit code but 0.
    """
    with tempfile.TemporaryFile() as stderr:
        started = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
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


def warm(files: Iterable[Path]) -> None:
    """Read files to their end, so that the page cache has them, as far as they fit."""
    block = bytearray(1 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def evict(files: Iterable[Path]) -> None:
    """Ask the kernel to forget what it keeps of files. What isn't on the disk yet stays: sync
    before.

    Raises:
        CommandError: where the system has no way to ask.
    """
    if not hasattr(os, "posix_fadvise"):
        raise CommandError(
            "this system can't drop files from the page cache; give --page-cache warm"
        )
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(files: Iterable[Path]) -> float:
    """The share of the bytes of files that is in the page cache, 0 to 1. Linux only."""
    pages = cached = 0
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    for path in files:
        nbytes = path.stat().st_size
        if nbytes == 0:
            continue
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY) as mapped,
        ):
            resident = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
            first = ctypes.c_char.from_buffer(mapped)
            failed = mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(nbytes), resident
            )
            del first  # it keeps the mapping from being closed
            if failed:
                raise CommandError(f"mincore: {os.strerror(ctypes.get_errno())}")
        pages += len(resident)
        cached += sum(page & 1 for page in resident)
    return cached / max(pages, 1)


def machine(folder: Path, packages: Sequence[str]) -> list[str]:
    """Lines that say what the figures were measured on: processor, memory, the file system of
    `folder`, versions.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    kind = file_system(folder)
    versions = [
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in packages),
    ]
    return [
        f"machine   {_processor()}, {cores} cores, {memory:.1f} GiB memory, {platform.system()} "
        f"{platform.release()}",
        f"scratch   {kind}"
        + (
            ": memory, not a disk; give a folder on a disk with --scratch"
            if kind == "tmpfs"
            else ""
        ),
        f"versions  {', '.join(versions)}",
    ]


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on (`ext4`), `unknown` where there is no
    /proc.
    """
    table = Path("/proc/self/mountinfo")
    if not table.exists():
        return "unknown"
    where, found = folder.resolve(), (0, "unknown")
    for line in (
        table.read_text().splitlines()
    ):  # "36 35 98:0 /root /mount/point options … - type device options", see proc(5)
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
