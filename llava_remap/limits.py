"""How much memory this machine, its control groups and `ulimit` leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

#: The limit of a process's address space.
ADDRESSES = "ulimit -v"
#: Bytes that are mapped and not occupied: threads' stacks, their allocators' arenas, buffers of linear algebra.
_BESIDE = 256 << 20


def status(key: str) -> int | None:
    """Bytes that Linux tells of this process; None on other systems."""
    return _table(Path("/proc/self/status")).get(key)


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file like `/proc/meminfo`, in bytes; empty where there is none."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) >= 2 and words[1].isdecimal():
                found[words[0]] = int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return found


def limits() -> Iterator[tuple[int, str]]:
    """How much more memory there is, by each limit that can be read, and what sets it."""
    machine = _table(Path("/proc/meminfo"))
    swap = machine.get("SwapFree", 0)
    if "MemAvailable" in machine:
        yield machine["MemAvailable"] + swap, "the machine's memory and swap"
    yield from ((free, "the limit of its control group") for free in _control_groups(swap))
    yield from ((free - _BESIDE if what == ADDRESSES else free, what) for free, what in process_limits())


def process_limits() -> Iterator[tuple[int, str]]:
    """How much more this process may map, and how much more data it may have, where `ulimit` sets that."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        for name, key, what in (("RLIMIT_AS", "VmSize", ADDRESSES), ("RLIMIT_DATA", "VmData", "ulimit -d")):
            soft, taken = resource.getrlimit(getattr(resource, name))[0], status(key)
            if soft != resource.RLIM_INFINITY and taken is not None:
                yield soft - taken, what


def _control_groups(swap: int, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """What is left in this process's control groups and those around them; files that are only cached can make room."""
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2
                base, names, cached = root, ("memory.max", "memory.current"), ("inactive_file", "active_file")
            elif "memory" in controllers.split(","):
                base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
                cached = ("total_inactive_file", "total_active_file")
            else:
                continue
            group = base / path.strip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
                with contextlib.suppress(OSError, ValueError):  # "max": no limit
                    limit, taken = (int((folder / name).read_text()) for name in names)
                    statistics = _table(folder / "memory.stat")
                    yield limit - taken + sum(statistics.get(name, 0) for name in cached) + swap
