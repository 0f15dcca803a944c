"""Ways to copy a file onto the disk, beside one another, from a warm and from a cold page cache.

    python -m tools.bench.copying [--size 1GB] [--rounds 3] [--scratch DIR]

Each run is a process of its own and ends when the copy is on the disk (`fsync`). In every second
round the order is reversed. The writer of weight files does what this table shows to be fast.
"""

from __future__ import annotations

import argparse
import mmap
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.bench.measure import Usage

MIB = 1 << 20
#: O_DIRECT wants offsets, lengths and memory at multiples of the disk's block.
_BLOCK = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)


def in_kernel(source: Path, target: Path) -> None:
    """copy_file_range, as `cp` does it."""
    with source.open("rb") as read, target.open("wb") as written:
        while os.copy_file_range(read.fileno(), written.fileno(), 1 << 28):
            pass
        os.fsync(written.fileno())


def loop(source: Path, target: Path, *, nbytes: int) -> None:
    """Read and write through the page cache by turns."""
    buffer = bytearray(nbytes)
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as written:
        while count := read.readinto(buffer):
            written.write(memoryview(buffer)[:count])
        os.fsync(written.fileno())


def piped(source: Path, target: Path, *, nbytes: int, direct_read: bool) -> None:
    """One thread reads and one writes past the page cache (O_DIRECT), with two buffers between
    them.
    """
    read = os.open(source, os.O_RDONLY | (_DIRECT if direct_read else 0))
    written = os.open(target, os.O_WRONLY | os.O_CREAT | _DIRECT, 0o666)
    at = 0
    for buffer, count in _filled(read, nbytes):
        whole = (
            -(-count // _BLOCK) * _BLOCK
        )  # the last one is longer than the file, and cut off below
        if os.pwrite(written, memoryview(buffer)[:whole], at) != whole:
            raise OSError(f"{target}: short write")
        at += count
    os.ftruncate(written, at)
    os.fsync(written)
    os.close(read)
    os.close(written)


def _filled(file: int, nbytes: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Buffers with a file's bytes in order; each may be used until the next one is asked for."""
    free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[mmap.mmap, int]] = queue.SimpleQueue()

    def read() -> None:
        at, count = 0, nbytes
        while count == nbytes:
            buffer = free.get()
            count = os.preadv(file, [buffer], at)
            at += count
            full.put((buffer, count))

    for _ in range(2):
        free.put(mmap.mmap(-1, nbytes))  # its memory begins at a page
    threading.Thread(target=read, daemon=True).start()
    count = nbytes
    while count == nbytes:
        buffer, count = full.get()
        yield buffer, count
        free.put(buffer)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "copy_file_range": in_kernel,
    "loop, 1 MiB": partial(loop, nbytes=MIB),
    "loop, 8 MiB": partial(loop, nbytes=8 * MIB),
    "two threads, 1 MiB, O_DIRECT write": partial(piped, nbytes=MIB, direct_read=False),
    "two threads, 8 MiB, O_DIRECT write": partial(piped, nbytes=8 * MIB, direct_read=False),
    "two threads, 8 MiB, O_DIRECT both": partial(piped, nbytes=8 * MIB, direct_read=True),
}


def measure_copying(
    source: Path, target: Path, rounds: int, say: Callable[[str], None]
) -> dict[str, dict[str, list[Usage]]]:
    """By the state of the page cache, what each way took in each round. A way that isn't
    possible here is left out.
    """
    from tools.bench.measure import CommandError, evict, run, warm

    results: dict[str, dict[str, list[Usage]]] = {}
    ways = dict(WAYS)
    for state, prepare in (("warm", warm), ("cold", evict)):
        taken: dict[str, list[Usage]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
                os.sync()
                prepare([source])
                try:
                    taken[name].append(
                        run([sys.executable, __file__, "--run", name, str(source), str(target)])
                    )
                    say(
                        f"copying, {state}: round {number + 1}, {name}: {taken[name][-1].wall:.2f} "
                        "s"
                    )
                    if target.stat().st_size != source.stat().st_size:
                        raise ValueError(
                            f"{name}: {target.stat().st_size:,} of {source.stat().st_size:,} bytes "
                            "were written"
                        )
                except CommandError as error:
                    say(f"copying: {name} is not possible here: {str(error).splitlines()[-1]}")
                    del ways[name], taken[name]
                target.unlink(missing_ok=True)
        results[state] = taken
    return results


def main(given: Sequence[str] | None = None) -> None:
    if sys.argv[1:2] == ["--run"]:
        name, source, target = sys.argv[2:5]
        WAYS[name](Path(source), Path(target))
        return
    from tools.bench.measure import machine, run
    from tools.bench.options import rounds_of, say, scratch_folder, size_of
    from tools.bench.results import Results
    from tools.bench.tables import print_tables, tables

    parser = argparse.ArgumentParser(description="Measure ways to copy a file onto the disk.")
    parser.add_argument("--size", type=size_of, default="1GB", help="of the file (default: 1GB)")
    parser.add_argument(
        "--rounds", type=rounds_of, default=3, help="how often every way is run (default: 3)"
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path("build"), metavar="DIR", help="where (default: build)"
    )
    arguments = parser.parse_args(given)
    with scratch_folder(arguments.scratch, int(2.5 * arguments.size)) as scratch:
        results = Results(machine(scratch, ()), copied_nbytes=arguments.size)
        make_file(scratch / "source", arguments.size)
        results.copying = measure_copying(
            scratch / "source", scratch / "target", arguments.rounds, say
        )
        results.floor = run(["true"]).peak_nbytes
    print("\n".join(results.machine))
    print_tables(tables(results)[:-1])


def make_file(path: Path, nbytes: int) -> None:
    """A file of random bytes: one block again and again."""
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for start in range(0, nbytes, MIB):
            file.write(block[: nbytes - start])


if __name__ == "__main__":
    main()
