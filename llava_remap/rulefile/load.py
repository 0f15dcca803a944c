"""Loads rule files: merges `extends`, validates every field, and gives every error its file, line
and column.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llava_remap.core.arguments import as_path
from llava_remap.core.codes import Exit
from llava_remap.core.problem import Mark, Problem, RemapError, refuse
from llava_remap.rulefile.extends import RULES, Extended, is_file, shown
from llava_remap.rulefile.schema import LISTED, NAMED, SEEN, ConfigValue, RuleText, Target
from llava_remap.rulefile.yaml_text import Node, read_yaml

#: The most mistakes of one file that are reported at once.
_MOST_PROBLEMS = 50
_MEND = "Correct it there; the shipped rule files show every field."
#: A step of pydantic's path that isn't a field: one of several types that pydantic tried.
_TRIED = re.compile(r"[\[\]]|^(str|int|float|bool|nullable)$")
_PATTERNS = (
    "In a template, fields are {x}, {x:int} and {x...}, in `tensors` {x:each} too; in a regex, a "
    "character that stands for itself has a \\ before it."
)
#: pydantic's kinds of error in the words of YAML.
_KINDS = {
    "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_type": "text (quote it if it looks like a number)", "bool_type": "true or false",
    "int_type": "a whole number",
    "string_pattern_mismatch": "of another form: an id has small letters, digits and hyphens, a "
                               "version three numbers with dots",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A validated rule file with everything it extends merged in.

    Attributes:
        path: where it was read from.
        text: its fields.
        sha256: digest of the bytes of all files that it extends, of the file, and of its layouts.
        texts: the name and the text of each of these files, in that order.
        marks: place of each rule, by `prepare/ID`, `names/ID` or `tensors/ID`.
        tree: the merged file, in which every value has its place.
        layouts: the files of its `layouts`, in that order.
        called: the file of a mark, relative to the current folder → the file's name in `texts`.
    """

    path: Path
    text: RuleText
    sha256: str
    texts: tuple[tuple[str, str], ...] = field(repr=False)
    marks: dict[str, Mark]
    tree: Node = field(repr=False)
    layouts: tuple[RuleFile, ...] = field(default=(), repr=False)
    called: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        return self.text.name or self.path.stem

    @property
    def target(self) -> Target:
        """The target of the rule file.

        Raises:
            RemapError: LR201 for a part, which names no model.
        """
        if self.text.target is None or not self.text.target.is_said:
            raise refuse(
                "LR201",
                f"`{self.name}` has no `target.class`: it is a part of other rule files.",
                "Give a rule file that extends it.",
                place=Mark(str(self.path), 1, 1),
            )
        return self.text.target

    @property
    def target_config(self) -> Mapping[str, ConfigValue]:
        """The file's values for the target's config. A part without a class may have some."""
        return self.text.target.config if self.text.target is not None else {}

    @contextlib.contextmanager
    def placed(self, *path: str | int) -> Iterator[None]:
        """Give the place of the field at `path` to a mistake in the rule file that is raised inside
        by code that doesn't know the file.
        """
        try:
            yield
        except RemapError as error:
            mark = self.tree.locate(path).mark
            error.problems = tuple(
                replace(p, place=p.place or mark) if p.exit is Exit.USAGE else p
                for p in error.problems
            )
            raise

    @property
    def first_source(self) -> str:
        """The source that a bare `--source` names."""
        return next(iter(self.text.sources))


def shipped_folder() -> Path:
    """The folder of the shipped rule files: inside the installed package, or at the top of a
    checkout.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "_rules"
    return inside if inside.is_dir() else package.parent / "rules"


def shipped_rule_files() -> dict[str, Path]:
    """The shipped files that can be applied, by name; parts and layouts are not among them."""
    return {
        path.stem: path
        for path in sorted(shipped_folder().glob("*.yaml"), key=lambda path: path.stem)
    }


def shipped_chat_parts() -> list[str]:
    """The shipped parts with chat templates, as `extends` names them."""
    return sorted(
        path.relative_to(shipped_folder()).as_posix()
        for path in shipped_folder().glob("parts/chat-*.yaml")
    )


def shipped_class_part(model_type: str) -> str | None:
    """The shipped part for the class of a `model_type`, as `extends` names it; None without one."""
    name = f"parts/class-{model_type.replace('_', '-')}.yaml"
    return name if (shipped_folder() / name).is_file() else None


@dataclass(frozen=True, slots=True)
class Listed:
    """The head of a shipped rule file."""

    name: str
    version: str
    summary: str
    extends: tuple[str, ...]


def shipped_list() -> list[Listed]:
    """The head of every shipped rule file. Files that it extends aren't read.

    Raises:
        RemapError: LR200, LR201.
    """
    heads = {name: read_yaml(path, str(path)).plain for name, path in shipped_rule_files().items()}
    return [
        Listed(
            name,
            str(head.get("version", "")),
            str(head.get("summary", "")),
            tuple(head.get("extends", ())),
        )
        for name, head in heads.items()
    ]


def load_rule_file(rules: str | Path) -> RuleFile:
    """Load a rule file by path, or a shipped one by name (`llava-v1.5`, `parts/llava`, or
    `rules/llava-v1.5.yaml` from anywhere).

    The `.yaml` of a name can be left out.

    Raises:
        RemapError: LR200–LR210, with all problems of the file that don't hide each other; LR211 if
            `rules` can't be a path.
    """
    as_path("rules", rules)
    path = _find(str(rules))
    if path.is_absolute() and path.is_relative_to(shipped_folder()):
        return _load_shipped(path, shown(shipped_folder()))
    return _load(path)


@cache
def _load_shipped(path: Path, folder: str) -> RuleFile:
    """Load a shipped file. Shipped files don't change while a process runs.

    Args:
        folder: the shipped folder as messages name it, which depends on the current folder. It only
            serves as a part of the cache's key.
    """
    return _load(path)


def _load(path: Path) -> RuleFile:
    files = Extended(shipped_folder())
    merged = files.merge(path)
    digest = hashlib.sha256()
    for content in files.texts.values():
        digest.update(content)
    text = _validate(merged)
    marks = {
        f"{kind}/{node.value['id'].value}": node.mark
        for kind in RULES
        for node in merged.list_at(kind)
        if isinstance(node.value, dict)
    }
    named = tuple((_called(file, path), content.decode()) for file, content in files.texts.items())
    layouts = tuple(_layout(merged, number, name) for number, name in enumerate(text.layouts))
    for layout in layouts:
        digest.update(layout.sha256.encode())
        named += tuple(entry for entry in layout.texts if entry not in named)
    marked = {
        mark.file
        for mark in (*marks.values(), *(node.mark for node in merged.list_at("post_load")))
    }
    called = {file: _called(Path(file).resolve(), path) for file in marked}
    return RuleFile(path, text, digest.hexdigest(), named, marks, merged, layouts, called)


def shipped_layouts() -> dict[str, Path]:
    """The shipped layouts by name. `classic` comes first, so it is used for names that several
    layouts share.
    """
    return {
        path.stem: path
        for path in sorted(
            (shipped_folder() / "layouts").glob("*.yaml"),
            key=lambda path: (path.stem != "classic", path.stem),
        )
    }


def _layout(merged: Node, number: int, name: str) -> RuleFile:
    known, name = shipped_layouts(), name.removesuffix(".yaml")
    if name not in known:
        raise refuse(
            "LR201",
            f"there is no layout `{name}`.",
            f"The shipped layouts are {', '.join(known)}.",
            place=merged.locate(("layouts", number)).mark,
        )
    return load_rule_file(known[name])


def _find(rules: str) -> Path:
    path = Path(rules)
    if is_file(path):
        return path
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("rules",) else path
    shipped_file = shipped_folder() / f"{str(inside).removesuffix('.yaml')}.yaml"
    if not inside.is_absolute() and ".." not in inside.parts and is_file(shipped_file):
        return shipped_file
    if is_file(Path(f"{rules}.yaml")):
        return Path(f"{rules}.yaml")
    shipped = shipped_rule_files()
    near = difflib.get_close_matches(path.name.removesuffix(".yaml"), shipped, 1)
    raise refuse(
        "LR200",
        f"`{rules}` is neither a file nor a shipped rule file (shipped: {', '.join(shipped)}).",
        f"Did you mean `{near[0]}`?" if near else "See `llava-remap rules list`.",
    )


def _called(file: Path, child: Path) -> str:
    """The name of a merged file as `extends` spells it: relative to the shipped folder, or to the
    folder of the loaded file.
    """
    for folder in (shipped_folder(), child.parent):
        if file.is_relative_to(folder.resolve()):
            return file.relative_to(folder.resolve()).as_posix()
    return file.name


def _validate(merged: Node) -> RuleText:
    try:
        return RuleText.model_validate(merged.plain)
    except ValidationError as error:
        raise RemapError(list(islice(_problems(merged, error), _MOST_PROBLEMS))) from None


def _problems(merged: Node, error: ValidationError) -> Iterator[Problem]:
    """One problem for each place. pydantic reports an error for each type that a value could have
    had, which would be several problems.
    """
    told = set()
    for detail in error.errors():
        path = tuple(step for step in detail["loc"] if step not in (NAMED, SEEN, LISTED))
        node = merged.locate(path)
        name = path[-1] if path else ""
        if (kind := detail["type"]) not in ("extra_forbidden", "missing"):
            if node.mark in told:
                continue
            told.add(node.mark)
        match kind:
            case "extra_forbidden":
                here = (node.key_mark or node.mark).file
                beside = {
                    k
                    for k, n in merged.locate(path[:-1]).entries.items()
                    if n.key_mark and n.key_mark.file == here
                }
                free = [known for known in _fields_at(path[:-1]) if known not in beside]
                near = difflib.get_close_matches(str(name), free, 1)
                field, colon, value = str(name).partition(":")
                fix = (
                    f"Did you mean `{near[0]}`?"
                    if near
                    else f"Known here: {', '.join(_fields_at(path[:-1]))}."
                )
                if colon and field in _fields_at(path[:-1]):
                    fix = f"Put a space after the colon: {field}: {value}"
                yield Problem(
                    "LR201", f"unknown field `{name}`.", fix, place=node.key_mark or node.mark
                )
            case "missing":
                yield Problem(
                    "LR201", f"the field `{name}` is missing.", "Add it.", place=node.mark
                )
            case "pattern":
                yield Problem("LR202", f"{detail['msg']}.", _PATTERNS, place=node.mark)
            case "form" | "origin" | "outcome":
                yield Problem("LR201", f"{detail['msg']}.", _MEND, place=node.mark)
            case _:
                said = ".".join(str(step) for step in path if not _TRIED.search(str(step)))
                if said != ".".join(map(str, path)):
                    yield Problem(
                        "LR201",
                        f"`{said}` has to be a text, a number, true, false, null or a list of "
                        "such values.",
                        _MEND,
                        place=node.mark,
                    )
                elif kind == "string_type" and isinstance(node.value, dict):
                    fix = f"Put a name with braces in quotes: {_written(node)}."
                    yield Problem(
                        "LR201",
                        f"`{said}` has to be text, and braces without quotes are a mapping.",
                        fix,
                        place=node.mark,
                    )
                elif kind in _KINDS:
                    yield Problem(
                        "LR201", f"`{said}` has to be {_KINDS[kind]}.", _MEND, place=node.mark
                    )
                else:
                    yield Problem(
                        "LR201",
                        f"`{said}`: {detail['msg'][:1].lower()}{detail['msg'][1:]}.",
                        _MEND,
                        place=node.mark,
                    )


def _written(node: Node) -> str:
    """A template in quotes. YAML reads a bare `{x}` as a mapping whose only key is `x`."""
    keys = list(node.value) if isinstance(node.value, dict) else []
    return f"'{{{keys[0]}}}'" if len(keys) == 1 else "'{m...}.weight'"


def _fields_at(path: tuple[str | int, ...]) -> list[str]:
    """The fields that a mapping at this place may have."""
    model: type[BaseModel] = RuleText
    for step in path:
        found = next((f for name, f in model.model_fields.items() if step in (name, f.alias)), None)
        model = _model_in(found.annotation if found else None) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside `tuple[M, ...]`, `dict[str, M]` or `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
