"""What the benchmarks' command lines share: sizes, rounds, a scratch folder, lines of progress."""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.bench.measure import CommandError
from tools.bench.synthetic import shapes_for, total_nbytes


@contextlib.contextmanager
def scratch_folder(parent: Path, nbytes: int) -> Iterator[Path]:
    """A new folder in `parent` with room for `nbytes`, removed at the end however it comes;
    `parent` too if it was made here.
    """
    made = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    try:
        free = shutil.disk_usage(parent).free
        if free < nbytes:
            raise CommandError(
                f"{nbytes / 1e9:.1f} GB are needed in {parent}, {free / 1e9:.1f} GB are free; give "
                "another --scratch"
            )
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
            yield Path(name).resolve()
    finally:
        if made and not any(parent.iterdir()):
            parent.rmdir()


def size_of(text: str) -> int:
    """Bytes for `500MB`, `2.5GB` (decimal units) or `7b` (the whole model)."""
    if text.lower() == "7b":
        return total_nbytes(shapes_for(1 << 62))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])B", text, re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1GB, 2.5GB or 7b")
    return int(float(found[1]) * {"M": 10**6, "G": 10**9}[found[2].upper()])


def rounds_of(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; write 1 or more")
    return int(text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
