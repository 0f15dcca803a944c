"""Limits of the system: memory (of the machine, of control groups, of `ulimit`), open files,
threads, temporary files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

from llava_remap.core.problem import RemapError, refuse

#: The limit of a process's address space.
ADDRESSES = "ulimit -v"
#: Bytes that a process maps without occupying them: threads' stacks, allocators' arenas, buffers
#: of linear algebra.
_BESIDE = 256 << 20
#: Messages for a failed allocation, from the system and from the loader of shared libraries.
_NO_MEMORY = (os.strerror(errno.ENOMEM), "failed to map segment from shared object")
#: The loader's message for a library that can't be opened, since too many files are open.
_NO_FILE = os.strerror(errno.EMFILE)
#: Errors that only occur in writing.
UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
#: Threads in addition to one for each core: threads of libraries, and our own readers and writers.
_MORE_THREADS = 4
#: A limit on processes that no job comes near.
_MANY_PROCESSES = 1024


def limit_reached(error: BaseException) -> RemapError | None:
    """The refusal for an error that a limit of the system caused; None for any other error.

    LR501: the process can take no more memory. LR511: it can open no more files, or start no more
    threads.
    """
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        return no_more_memory()
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or (
        isinstance(error, ImportError) and _NO_FILE in str(error)
    ):
        return refuse(
            "LR511", "this process can open no more files.", "Raise the limit: `ulimit -n 1024`."
        )
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        # A thread's stack takes address space.
        narrow = any(what == ADDRESSES and free < _BESIDE for free, what in process_limits())
        return no_more_memory() if narrow else no_more_processes()
    return None


def no_more_memory() -> RemapError:
    """LR501: an allocation failed."""
    if not (by_process := list(process_limits())):
        return refuse(
            "LR501",
            "the machine has not enough free memory.",
            "Close other programs, or use a larger machine.",
        )
    free, what = min(by_process)
    return refuse(
        "LR501",
        f"this process needs more memory than `{what}` leaves, {max(free, 0):,} bytes.",
        f"Raise the limit: `{what} unlimited`.",
    )


def no_more_processes() -> RemapError:
    """LR511: no thread or process can be started. The system counts both together."""
    return refuse(
        "LR511",
        "this process can start no more threads or processes.",
        "Raise the limit: `ulimit -u unlimited`, or the container's limit (`--pids-limit`).",
    )


def refuse_without_threads() -> None:
    """LR511 if the threads of libraries for linear algebra can't be started: some of these
    libraries would end the process.

    Threads are tried only if a limit is low, since they leave parts of the address space mapped.
    """
    if all(left >= _MANY_PROCESSES for left in _process_limits()):
        return
    go_on = Event()
    started: list[Thread] = []
    try:
        for _ in range((os.cpu_count() or 1) + _MORE_THREADS):
            started.append(Thread(target=go_on.wait, daemon=True))
            started[-1].start()
    except RuntimeError as error:
        started.pop()
        raise limit_reached(error) or error from None
    finally:
        go_on.set()
        for thread in started:
            thread.join()


def _process_limits() -> Iterator[int]:
    """How many processes and threads are allowed, by each limit that is set."""
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if soft != resource.RLIM_INFINITY:
        yield soft
    for group in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/pids")):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            yield int((group / "pids.max").read_text()) - int((group / "pids.current").read_text())


def refuse_without_temporary_files() -> None:
    """LR511 if there is no folder for temporary files."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise refuse(
            "LR511",
            f"temporary files can't be written anywhere: {error.strerror}.",
            "Set TMPDIR to a folder that you may write to.",
        ) from None


def status(key: str) -> int | None:
    """Bytes from Linux's status of this process; None on other systems."""
    return _table(Path("/proc/self/status")).get(key)


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file like `/proc/meminfo`, in bytes; empty without the file."""
    numbers = {}
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) >= 2 and words[1].isdecimal():
                numbers[words[0]] = int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return numbers


def limits() -> Iterator[tuple[int, str]]:
    """The memory that is left by each limit that can be read, and what sets the limit."""
    machine = _table(Path("/proc/meminfo"))
    swap = machine.get("SwapFree", 0)
    if "MemAvailable" in machine:
        yield machine["MemAvailable"] + swap, "the machine's memory and swap"
    yield from ((free, "the limit of its control group") for free in _control_groups(swap))
    yield from (
        (free - _BESIDE if what == ADDRESSES else free, what) for free, what in process_limits()
    )


def process_limits() -> Iterator[tuple[int, str]]:
    """The address space and data that this process has left, if `ulimit` sets limits."""
    for limit, key, what in (
        (resource.RLIMIT_AS, "VmSize", ADDRESSES),
        (resource.RLIMIT_DATA, "VmData", "ulimit -d"),
    ):
        soft, taken = resource.getrlimit(limit)[0], status(key)
        if soft != resource.RLIM_INFINITY and taken is not None:
            yield soft - taken, what


def _control_groups(
    swap: int, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """The memory that is left in this process's control groups and those around them; cached files
    can make room.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                base, names, cached = (
                    root,
                    ("memory.max", "memory.current"),
                    ("inactive_file", "active_file"),
                )
            elif "memory" in controllers.split(","):
                base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
                cached = ("total_inactive_file", "total_active_file")
            else:
                continue
            group = base / path.strip("/")
            for folder in (
                group,
                *(parent for parent in group.parents if parent.is_relative_to(base)),
            ):
                with contextlib.suppress(OSError, ValueError):  # "max": no limit
                    limit, taken = (int((folder / name).read_text()) for name in names)
                    statistics = _table(folder / "memory.stat")
                    yield limit - taken + sum(statistics.get(name, 0) for name in cached) + swap
