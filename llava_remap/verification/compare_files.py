"""Configs and other small JSON files of two checkpoints, compared key by key."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import (
    ADAPTER_CONFIG,
    BESIDE,
    Checkpoint,
    has_file,
    read_object,
    readable,
)
from llava_remap.core import quoted, refuse
from llava_remap.core.limits import limit_reached
from llava_remap.execute import FileDigest, digest_files
from llava_remap.target_model.wanted import from_json, refuse_endless
from llava_remap.verification.difference import File, Row

_CONFIG, _GENERATION, _PARAMS = BESIDE["config"]
_TEKKEN = "tekken.json"  # a library that need not be here reads its words
#: Files whose content transformers 5 keeps in `processor_config.json`, under these keys. It reads
#: either place.
_NESTED = {
    "preprocessor_config.json": "image_processor",
    "video_preprocessor_config.json": "video_processor",
}
_PROCESSOR = "processor_config.json"
#: Configs and processor files.
_NAMES = (
    _CONFIG,
    _GENERATION,
    _PARAMS,
    ADAPTER_CONFIG,
    *_NESTED,
    _PROCESSOR,  # after the files whose content may be in it
)
#: The key for the version that wrote a config. It has no effect.
_WRITER = "transformers_version"
#: The deepest nesting of objects and lists.
_DEEPEST = 100
#: Files that aren't compared and may change a checkpoint's behaviour: code, and vocabularies of
#: other forms.
_OTHER = re.compile(
    r"(?!llava_remap\.json|trainer_state).+(?<!\.index)\.(py|model|tiktoken|txt|json)"
)
_FIX = "Replace it with the original file."


def compare_files(a: Checkpoint, b: Checkpoint) -> Iterator[File]:
    """The configs and processor files that differ, or differ only in spelling.

    Raises:
        RemapError: LR100, LR102 or LR113 for a file that can't be read.
    """
    if a.folder is None or b.folder is None:  # in memory, or a manifest: there are no other files
        if all(side.config is not None or side.folder is not None for side in (a, b)):
            found = compare_objects(_CONFIG, a.config, b.config)
            yield from [] if found is None else [found]
        return
    contents = [{name: _content(side, name) for name in _NAMES} for side in (a, b)]
    for name in _NAMES:
        moved = _moved(name, *contents)
        found = compare_objects(name, contents[0][name], contents[1][name])
        if moved is not None:
            found = replace(found or File(name), spelling=(moved,), read_by="transformers 5")
        if found is not None:
            yield found


def files_not_compared(a: Path, b: Path) -> list[str]:
    """Files with code, words or settings that differ or that only one folder has, and whose content
    isn't compared here.

    Raises:
        RemapError: LR100 or LR102 for a file that can't be read.
    """
    of_a, of_b = _others(a), _others(b)
    return sorted(name for name in {**of_a, **of_b} if of_a.get(name) != of_b.get(name))


def _others(folder: Path) -> dict[str, FileDigest]:
    """The digests of a folder's files that aren't compared."""
    compared = {*_NAMES, *(name for names in BESIDE.values() for name in names)} - {_TEKKEN}
    with readable(folder):
        paths = [
            path
            for path in folder.iterdir()
            if _OTHER.fullmatch(path.name) and path.name not in compared and path.is_file()
        ]
    return {path.name: digest for path, digest in digest_files(paths).items()}


def _moved(name: str, a: _Contents, b: _Contents) -> Row | None:
    """If only one side has a file, and the other side has its content in `processor_config.json`,
    treat this content as the other side's file.
    """
    key = _NESTED.get(name, "")
    inner = [(side[_PROCESSOR] or {}).get(key) for side in (a, b)]
    sides = ((a, b, inner[0], inner[1]), (b, a, inner[1], inner[0]))
    for own, other, own_inner, other_inner in sides:
        processor = other[_PROCESSOR]
        if own[name] is None or other[name] is not None or own_inner is not None:
            continue
        if isinstance(other_inner, Mapping) and processor is not None:
            other[name] = other_inner
            other[_PROCESSOR] = {k: v for k, v in processor.items() if k != key}
            places = (name if side is own else f"{_PROCESSOR}: {key}" for side in (a, b))
            return Row("place", next(places), next(places))
    return None


def compare_objects(
    name: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None
) -> File | None:
    """Compare two JSON objects from files of this name; None for no difference or no file."""
    for content in (a, b):
        refuse_depth(name, content)
    if a is None or b is None:
        return None if a is b else File(name, "b" if a is None else "a")
    found = rows(a, b)
    if not found:
        return None
    read = _reader(name, a, b)
    return File(name, None, found) if read is None else _as_read(name, a, b, found, *read)


def _content(checkpoint: Checkpoint, name: str) -> Mapping[str, Any] | None:
    """The JSON object of a small file."""
    return checkpoint.config if name == _CONFIG else read_json(checkpoint, name)


def read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """The JSON object in a checkpoint's folder; None if it isn't there."""
    folder = checkpoint.folder
    if folder is None or not has_file(folder / name):
        return None
    return read_object(folder / name, "LR113", _FIX, unique=False)


def refuse_depth(name: str, content: Any) -> None:
    """LR113 for JSON that is nested deeper than any config: Python compares and prints JSON
    recursively.
    """
    level: list[Any] = [] if content is None else [content]
    for _ in range(_DEEPEST):
        inner = (one.values() if isinstance(one, Mapping) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not level:
            return
    raise refuse("LR113", f"{quoted(name)} is nested more than {_DEEPEST} deep.", _FIX)


def rows(a: Any, b: Any) -> tuple[Row, ...]:
    """The differences between two JSON values. Objects are compared key by key, lists of equal
    length item by item.

    `1` and `1.0` are equal, `1` and `true` differ.
    """
    return tuple(row for _, row in _rows(a, b, ()))


_Contents = dict[str, Mapping[str, Any] | None]
"""The JSON objects of one side's files, by name."""
_Path = tuple[str | int, ...]
"""The keys, and positions in lists, that lead to a value."""


def _rows(a: Any, b: Any, path: _Path) -> Iterator[tuple[_Path, Row]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys((*a, *b)):
            inner = (*path, name)
            if name not in b:
                yield inner, Row(_key(inner), a[name], None, "a")
            elif name not in a:
                yield inner, Row(_key(inner), None, b[name], "b")
            else:
                yield from _rows(a[name], b[name], inner)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _rows(one, other, (*path, number))
    elif a != b or isinstance(a, bool) is not isinstance(b, bool):
        yield path, Row(_key(path), a, b)


def _key(path: _Path) -> str:
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in path).lstrip(".")


_Reader = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Gives all values of a config, in the spelling and with the defaults of its class."""


def _reader(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[_Reader, str] | None:
    """The transformers class that reads both configs, with its name; None if the configs don't
    belong to a class, or transformers can't be imported.

    In a config of research code, transformers doesn't know the `model_type`, or doesn't know the
    class in `architectures`.
    """
    if name not in (_CONFIG, _GENERATION):
        return None
    try:
        import transformers
        from transformers import CONFIG_MAPPING
    except ImportError:
        return None
    version = f"of transformers {transformers.__version__}"
    if name == _GENERATION:
        generation: Any = transformers.GenerationConfig
        return (
            lambda content: dict(generation.from_dict(from_json(content)).to_dict()),
            f"{generation.__name__} {version}",
        )
    kinds = {str(config.get("model_type")) for config in (a, b)}
    classes = [c for config in (a, b) for c in _listed(config.get("architectures"))]
    if len(kinds) > 1 or not kinds <= set(CONFIG_MAPPING) or "auto_map" in {*a, *b}:
        return None
    if not all(isinstance(c, str) and hasattr(transformers, c) for c in classes):
        return None
    kind = CONFIG_MAPPING[kinds.pop()]

    def read(content: Mapping[str, Any]) -> dict[str, Any]:
        refuse_endless(content)
        return dict(kind.from_dict(from_json(content)).to_dict())

    return read, f"{kind.__name__} {version}"


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _as_read(
    name: str,
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    found: tuple[Row, ...],
    read: _Reader,
    read_by: str,
) -> File:
    """Divide differing values into those that the class reads as different and those that it reads
    as the same.

    A value that still differs after reading is different. So are two values of one key, because
    another version of transformers may read that key. The other values differ only in spelling if
    the class reads both configs as the same once A has B's different values. Otherwise, the
    remaining differences are listed in the class's spelling.
    """
    try:
        paths = {path for path, _ in _rows(read(a), read(b), ())}
        different = [
            (path, row)
            for path, row in _rows(a, b, ())
            if path in paths or (row.only_in is None and path[-1] != _WRITER)
        ]
        like_b = copy.deepcopy(dict(a))
        for path, row in different:
            _put(like_b, path, row)
        left = rows(read(like_b), read(b))
    except Exception as error:  # whatever a class raises: the configs are the user's
        if limit_reached(error) is not None:
            raise
        return File(name, None, found)
    kept = [row for _, row in different]
    spelling = tuple(row for row in found if row not in kept)
    return File(name, None, (*kept, *left), spelling, read_by)


def _put(config: Any, path: _Path, row: Row) -> None:
    """Give a config the value that B has in a row."""
    *parents, last = path
    for parent in parents:
        config = config[parent]
    if row.only_in == "a":
        del config[last]
    else:
        config[last] = copy.deepcopy(row.b)
