"""Reads a source's small files. A file is absent, readable, or refused; no JSON can crash the
reader.
"""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_remap.core import RemapError, printable, quoted, refuse
from llava_remap.core.files import is_regular_file
from llava_remap.core.limits import limit_reached

#: Bytes of a JSON file. This is the safetensors format's limit for a header; indexes, manifests and
#: configs stay far below it.
LARGEST = 100_000_000
#: The most values in lists and objects. Each takes up to 120 bytes of memory and as little as two
#: bytes of the file. For 100,000 tensors, an index has 100,000 values and a header 900,000; the
#: tokenizers with the largest vocabularies have 1,500,000.
_MOST_VALUES = 2_000_000
#: An escaped half of a surrogate pair. A text with an unpaired half can't be written again.
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


class AbsentError(RemapError):
    """No checkpoint is at the given place."""


class UnreadableError(RemapError):
    """The path exists and can't be read."""


class DamagedError(UnreadableError):
    """The disk fails to read a file, or files beside an unreadable one have other faults."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Refuse a file that the block fails to read: LR102 if the disk fails, LR100 if the file
    doesn't exist or reading is forbidden, LR501 or LR511 at a limit of the system.

    Args:
        path: the file, for errors that don't name it.
    """
    try:
        yield
    except OSError as error:
        raise limit_reached(error) or _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path) -> RemapError:
    where = str(error.filename or path)
    where = where if len(where) <= 120 else "..." + where[-117:]  # its end names the file
    damaged = error.errno == errno.EIO
    return (DamagedError if damaged else UnreadableError).of(
        "LR102" if damaged else "LR100",
        f"{quoted(where)} can't be read: {printable(error.strerror or str(error))}.",
        "Check the path and its permissions. Remove files that don't belong to the checkpoint; "
        "copy links together with their targets (`cp -rL`).",
    )


def unknown_dtype(file: Path, name: str, dtype: str) -> RemapError:
    """LR106: no language model, tower or projector is trained in this dtype."""
    return refuse(
        "LR106",
        f"in {quoted(file.name)} the tensor {quoted(name)} has dtype {quoted(dtype)}, which "
        "can't be converted.",
        "Give the unquantised checkpoint, in F16, BF16 or F32.",
        [name],
    )


def corrupt(file: Path, why: str, *names: str) -> RemapError:
    """LR102 for a file that contradicts itself."""
    return refuse(
        "LR102", f"{quoted(file.name)} is corrupt: {why}.", "Download or copy it again.", names
    )


def nearest_entry(path: Path) -> Path | None:
    """For a path that doesn't exist: the entry of its folder with the most similar name."""
    try:
        entries = [entry.name for entry in path.parent.iterdir()] if len(path.name) < 256 else []
    except (OSError, ValueError):
        return None
    near = difflib.get_close_matches(path.name, entries, 1, 0.8)
    return path.with_name(near[0]) if near else None


def has_file(path: Path) -> bool:
    """Whether a source has a file at `path`.

    Raises:
        RemapError: LR100 or LR102, with the system's reason, if something has this name and can't
            be read as a file.
    """
    with readable(path):
        return is_regular_file(path)


def read_file(path: Path) -> bytes:
    """The content of a source's file.

    Raises:
        RemapError: LR100 or LR102 if it can't be read.
    """
    with readable(path):
        if not is_regular_file(path):
            raise FileNotFoundError(2, "no such file", str(path))
        return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a source's file.

    Raises:
        RemapError: LR100 or LR102 if it can't be read, LR113 if it isn't UTF-8.
    """
    try:
        return read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(
            "LR113",
            f"{quoted(path.name)} isn't UTF-8 at byte {error.start}.",
            "Replace it with the original file.",
        ) from None


def json_beside(folder: Path | None, name: str) -> dict[str, Any] | None:
    """The JSON object in a folder's file of this name; None without folder or file.

    Raises:
        RemapError: LR113.
    """
    if folder is None or not has_file(folder / name):
        return None
    return read_object(folder / name, "LR113", "Download or copy it again.", unique=False)


def read_object(
    file: Path, code: str, fix: str, *, unique: bool = True, halves: bool = False
) -> dict[str, Any]:
    """The JSON object in `file`; errors as in `parse_object` and `read_file`."""
    if has_file(file) and (size := file.stat().st_size) > LARGEST:
        raise refuse(
            code,
            f"{quoted(file.name)} has {size} bytes; at most {LARGEST} are read of a JSON file.",
            fix,
        )
    return parse_object(read_file(file), code, quoted(file.name), fix, unique=unique, halves=halves)


def parse_object(
    data: bytes, code: str, what: str, fix: str, *, unique: bool = True, halves: bool = False
) -> dict[str, Any]:
    """The JSON object in `data`.

    Args:
        code, fix: the error's code and advice, should `data` be no JSON object in UTF-8.
        what: the name of `data` in the message.
        unique: whether a repeated key of an object is an error; otherwise its last value counts.
        halves: whether unpaired surrogates are allowed; Python has them for the bytes of a path
            that aren't UTF-8.
    """
    if (values := sum(data.count(sign) for sign in (b",", b"[", b"{"))) > _MOST_VALUES:
        raise refuse(code, f"{what} has {values} values, more than {_MOST_VALUES}.", fix)
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique if unique else None,
            parse_constant=_no_number,
        )
        if not halves and _HALF.search(data):
            _refuse_halves(found)
    except (ValueError, RecursionError) as error:
        raise refuse(
            code, f"{what} is not valid JSON ({error or type(error).__name__}).", fix
        ) from None
    if not isinstance(found, dict):
        raise refuse(
            code, f"{what} holds a JSON {type(found).__name__}, but an object is expected.", fix
        )
    return found


def _refuse_halves(content: Any) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a text in it is not valid Unicode") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in pairs:
        if key in known:
            raise ValueError(f"the key {quoted(key)} occurs twice")
        known[key] = value
    return known


def _no_number(word: str) -> None:
    raise ValueError(f"{word} isn't a number in JSON")
