"""A file in another one's place: whole, or the old one stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llava_remap.core.problem import refuse


@contextlib.contextmanager
def replacing(path: Path, data: bytes, fix: str = "") -> Iterator[Path]:
    """A file beside `path` with `data` in it, which takes the place of `path` unless something is
    raised inside.

    Raises:
        RemapError: LR508 where it can't be written, or where `path` is there and read-only; with
            `fix` as what to do.
    """
    place = path.resolve()  # a link stays one
    try:
        if place.exists() and not (os.access(place, os.W_OK) and place.stat().st_mode & 0o222):
            raise PermissionError(None, "it is read-only")
        descriptor, name = tempfile.mkstemp(
            dir=place.parent, prefix=f".{place.name}.", suffix=".partial"
        )
        partial = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if place.exists():
                shutil.copymode(place, partial)
            else:
                partial.chmod(0o666 & ~_umask())
            yield partial
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        fix = (
            fix
            or "Make it writable, or work on a copy; a copy of a shipped file can extend what the "
            "file does."
        )
        raise refuse("LR508", f"{path} can't be written: {error.strerror or error}.", fix) from None


def _umask() -> int:
    """What a new file may not be, as `open` would heed it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
