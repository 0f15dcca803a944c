"""Rule files from disk: `extends` merged, every field validated, every error with its file, line and column."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llava_remap.codes import Exit
from llava_remap.errors import Problem, RemapError, refuse
from llava_remap.rulefile.schema import ORIGINS, SCHEMA_VERSIONS, RuleText, Target
from llava_remap.rulefile.yaml_text import Mark, Node, read_yaml

#: What a file says of itself and doesn't hand on to files that extend it.
_OWN = ("schema", "name", "version", "summary", "changes", "extends", "tests")
_RULES = ("prepare", "names")
_MEND = "Mend it there; the shipped rule files show every field."
#: A step of pydantic's path that is no field but one of several types that it tried.
_TRIED = re.compile(r"[\[\]]|^(str|int|float|bool|nullable)$")
_PATTERNS = "In a template, fields are {x}, {x:int} and {x...}; in a regex, a sign that stands for itself has a \\ before it."
#: pydantic's kinds of error in the words of YAML.
_KINDS = {
    "tuple_type": "a list", "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "string_type": "text (quote it if it looks like a number)", "bool_type": "true or false", "int_type": "a whole number",
    "string_pattern_mismatch": "of another form: an id has small letters, digits and hyphens, a version three numbers with dots",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A validated rule file with everything it extends merged in.

    Attributes:
        path: where it was read from.
        text: its fields.
        sha256: digest of the bytes of the file and of all files it extends, in the order of merging.
        texts: the name and the text of each of these files, in that order.
        marks: place of each rule, by `prepare/ID` or `names/ID`.
        tree: the merged file with the place of everything in it.
    """

    path: Path
    text: RuleText
    sha256: str
    texts: tuple[tuple[str, str], ...] = field(repr=False)
    marks: dict[str, Mark]
    tree: Node = field(repr=False)

    @property
    def name(self) -> str:
        return self.text.name or self.path.stem

    @property
    def target(self) -> Target:
        """What is wanted.

        Raises:
            RemapError: LR201 for a part, which has no target class.
        """
        if self.text.target is None or self.text.target.class_ is None:
            raise refuse(
                "LR201",
                f"{self.path}:1:1 `{self.name}` has no `target.class`: it is a part of other rule files.",
                "Give a rule file that extends it.",
            )
        return self.text.target

    @contextlib.contextmanager
    def placed(self, *path: str | int) -> Iterator[None]:
        """Mistakes of the rule file that are found inside, in rooms that know no files, get the place of the field at `path`."""
        try:
            yield
        except RemapError as error:
            mark = self.tree.locate(path).mark
            problems = [replace(p, cause=f"{mark} {p.cause}") if p.exit is Exit.USAGE else p for p in error.problems]
            raise RemapError(problems) from error

    @property
    def first_source(self) -> str:
        """The source that a bare `--source` names."""
        return next(iter(self.text.sources))


def shipped_folder() -> Path:
    """Where the shipped rule files are: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "_rules"
    return inside if inside.is_dir() else package.parent / "rules"


def shipped_rule_files() -> dict[str, Path]:
    """The shipped files that can be applied, by name; parts and layouts are not among them."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def load_rule_file(rules: str | Path) -> RuleFile:
    """Load a rule file by path, or a shipped one by name (`llava-v1.5`, or `rules/llava-v1.5.yaml` from anywhere).

    Raises:
        RemapError: LR200–LR210, every problem of the file at once where they don't hide each other.
    """
    path = _find(str(rules))
    merged, texts = _merge_file(path, ())
    digest = hashlib.sha256()
    for content in texts.values():
        digest.update(content)
    text = _validate(merged)
    marks = {
        f"{kind}/{node.value['id'].value}": node.mark
        for kind in _RULES
        for node in _items(merged, kind)
        if isinstance(node.value, dict)
    }
    named = tuple((_called(file, path), content.decode()) for file, content in texts.items())
    return RuleFile(path, text, digest.hexdigest(), named, marks, merged)


def _find(rules: str) -> Path:
    path = Path(rules)
    if _is_file(path):
        return path
    shipped = shipped_rule_files()
    name = path.name.removesuffix(".yaml")
    if name in shipped and str(path.parent) in (".", "rules"):
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, 1)
    raise refuse(
        "LR200",
        f"`{rules}` is neither a file nor a shipped rule file (shipped: {', '.join(shipped)}).",
        f"Did you mean `{near[0]}`?" if near else "See `llava-remap rules list`.",
    )


def _merge_file(path: Path, chain: tuple[Path, ...]) -> tuple[Node, dict[Path, bytes]]:
    """The file's tree with its parents merged in, and the bytes of every file read, parents first."""
    root = read_yaml(path, _shown(path))
    assert isinstance(root.value, dict)
    _check_version(root)
    merged: dict[str, Node] = {}
    texts: dict[Path, bytes] = {}
    for parent in _items(root, "extends"):
        if not isinstance(parent.value, str):
            raise refuse("LR201", f"{parent.mark} `extends` is a list of files.", "Write it so: extends: [parts/llava.yaml].")
        found = _find_parent(path, parent.value, parent.mark)
        if found.resolve() in (*chain, path.resolve()):
            links = [_shown(link) for link in (*chain, path.resolve(), found.resolve())]
            raise refuse("LR210", f"{parent.mark} `extends` runs in a circle: {' → '.join(links)}.", "Take one of them out.")
        tree, more = _merge_file(found, (*chain, path.resolve()))
        assert isinstance(tree.value, dict)
        handed_on = {key: node for key, node in tree.value.items() if key not in _OWN}
        merged = _merge_parents(merged, handed_on, root.value, parent.mark)
        texts |= more
    _check_ids(root)
    texts[path.resolve()] = path.read_bytes()
    return Node(_override(merged, root.value), root.mark), texts


def _called(file: Path, child: Path) -> str:
    """The name of a merged file as `extends` spells it: relative to the shipped files, or to the file that was asked for."""
    for folder in (shipped_folder(), child.parent):
        if file.is_relative_to(folder.resolve()):
            return file.relative_to(folder.resolve()).as_posix()
    return file.name


def _shown(path: Path) -> str:
    """The path as short as it can be said from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _find_parent(child: Path, name: str, mark: Mark) -> Path:
    for folder in (child.parent, shipped_folder()):
        if _is_file(folder / name):
            return folder / name
    raise refuse(
        "LR210",
        f"{mark} `{name}` is neither beside {child.name} nor a shipped file.",
        "Write the path relative to this file, or parts/NAME.yaml for a shipped part.",
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _check_version(root: Node) -> None:
    assert isinstance(root.value, dict)
    version = root.value.get("schema")
    if version is None or version.value not in SCHEMA_VERSIONS or isinstance(version.value, bool):
        what = (
            "the field `schema` is missing" if version is None else f"version `{version.plain}` of the rule language is unknown"
        )
        mark = version.mark if version else root.mark
        raise refuse(
            "LR201", f"{mark} {what}; known: {', '.join(map(str, SCHEMA_VERSIONS))}.", "Start the file with `schema: 1`."
        )


def _items(root: Node, key: str) -> tuple[Node, ...]:
    """The list under `key`; empty where there is none or it is something else, which validation reports."""
    node = root.value.get(key) if isinstance(root.value, dict) else None
    return _items_of(node) if node is not None else ()


def _rule_id(node: Node) -> str | None:
    """The rule's id, or None where it has none or none that is a word, which validation reports."""
    found = node.value["id"].value if isinstance(node.value, dict) and "id" in node.value else None
    return found if isinstance(found, str) else None


def _check_ids(root: Node) -> None:
    """LR209: within one file an id names one rule; over files it replaces."""
    for kind in _RULES:
        seen: dict[str, Mark] = {}
        for node in _items(root, kind):
            name = _rule_id(node)
            if name is None:
                continue
            if name in seen:
                raise refuse(
                    "LR209",
                    f"{node.mark} the id `{name}` in `{kind}` is taken by the rule at line {seen[name].line}.",
                    "Give one of them another id.",
                )
            seen[name] = node.mark


def _merge_parents(
    before: dict[str, Node], after: dict[str, Node], child: dict[str, Node], mark: Mark, path: tuple[str, ...] = ()
) -> dict[str, Node]:
    """Two parents in order. What both set differently and the child doesn't settle is LR210."""
    merged = dict(before)
    for key, node in after.items():
        old, here = merged.get(key), (*path, key)
        if old is None:
            merged[key] = node
        elif _merges(here, old, node):
            own = child.get(key)
            own_entries = _entries(own) if own is not None else {}
            entries = _merge_parents(_entries(old), _entries(node), own_entries, mark, here)
            merged[key] = Node(entries, old.mark, old.key_mark)
        elif _is_rules(here, old, node):
            merged[key] = Node(_join_rules(_items_of(old), _items_of(node)), old.mark, old.key_mark)
        elif key not in child and old.plain != node.plain:
            raise refuse(
                "LR210",
                f"{mark} two parents give `{key}` different values: {old.mark} and {node.mark}.",
                f"Set `{key}` in this file.",
            )
        else:
            merged[key] = node
    return merged


def _merges(path: tuple[str, ...], old: Node, new: Node) -> bool:
    """Whether two mappings at this place are merged. A config value with another origin than its parent's replaces it whole."""
    if not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return False
    config_value = len(path) == 3 and path[1] == "config"
    origins = [key for key in new.value if key in ORIGINS]
    return not (config_value and origins and not any(key in old.value for key in origins))


def _is_rules(path: tuple[str, ...], old: Node, new: Node) -> bool:
    return path in (("prepare",), ("names",)) and isinstance(old.value, tuple) and isinstance(new.value, tuple)


def _entries(node: Node) -> dict[str, Node]:
    return node.value if isinstance(node.value, dict) else {}


def _items_of(node: Node) -> tuple[Node, ...]:
    return node.value if isinstance(node.value, tuple) else ()


def _join_rules(first: tuple[Node, ...], second: tuple[Node, ...]) -> tuple[Node, ...]:
    """Two lists of rules, one behind the other; a rule of the second with an id of the first replaces it in place."""
    replaced = {_rule_id(node): node for node in second}
    known = {_rule_id(node) for node in first}
    return (*(replaced.get(_rule_id(n), n) for n in first), *(n for n in second if _rule_id(n) not in known))


def _override(parents: dict[str, Node], own: dict[str, Node], path: tuple[str, ...] = ()) -> dict[str, Node]:
    """The child's fields over its parents': mappings merge in the parents' order, rules stand in front, the rest is replaced."""
    merged = dict(parents)
    for key, node in own.items():
        old, here = parents.get(key), (*path, key)
        value: Any = node.value
        if old is not None and _merges(here, old, node):
            value = _override(_entries(old), _entries(node), here)
        elif old is not None and _is_rules(here, old, node):
            inherited = {_rule_id(n) for n in _items_of(old)}
            first = tuple(n for n in _items_of(node) if _rule_id(n) not in inherited)
            value = (*first, *_join_rules(_items_of(old), tuple(n for n in _items_of(node) if _rule_id(n) in inherited)))
        merged[key] = Node(value, node.mark, node.key_mark)
    return merged


def _validate(merged: Node) -> RuleText:
    try:
        return RuleText.model_validate(merged.plain)
    except ValidationError as error:
        raise RemapError(list(_problems(merged, error))) from None


def _problems(merged: Node, error: ValidationError) -> Iterator[Problem]:
    """One problem for each place; where a value fits none of several types, pydantic has one for each type."""
    told = set()
    for detail in error.errors():
        path = tuple(detail["loc"])
        node = merged.locate(path)
        name = path[-1] if path else ""
        if (kind := detail["type"]) not in ("extra_forbidden", "missing"):
            if node.mark in told:
                continue
            told.add(node.mark)
        match kind:
            case "extra_forbidden":
                here = (node.key_mark or node.mark).file
                beside = {k for k, n in _entries(merged.locate(path[:-1])).items() if n.key_mark and n.key_mark.file == here}
                free = [known for known in _fields_at(path[:-1]) if known not in beside]
                near = difflib.get_close_matches(str(name), free, 1)
                fix = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(_fields_at(path[:-1]))}."
                yield Problem("LR201", f"{node.key_mark or node.mark} unknown field `{name}`.", fix)
            case "missing":
                yield Problem("LR201", f"{node.mark} the field `{name}` is missing.", "Add it.")
            case "pattern":
                yield Problem("LR202", f"{node.mark} {detail['msg']}.", _PATTERNS)
            case "form" | "origin" | "outcome":
                yield Problem("LR201", f"{node.mark} {detail['msg']}.", _MEND)
            case _:
                said = ".".join(str(step) for step in path if not _TRIED.search(str(step)))
                if said != ".".join(map(str, path)):
                    yield Problem(
                        "LR201",
                        f"{node.mark} `{said}` has to be a text, a number, true, false, null or a list of those.",
                        _MEND,
                    )
                elif kind in _KINDS:
                    yield Problem("LR201", f"{node.mark} `{said}` has to be {_KINDS[kind]}.", _MEND)
                else:
                    yield Problem("LR201", f"{node.mark} `{said}`: {detail['msg'][:1].lower()}{detail['msg'][1:]}.", _MEND)


def _fields_at(path: tuple[str | int, ...]) -> list[str]:
    """The names of the fields that a mapping at this place can have."""
    model: Any = RuleText
    for step in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            found = next((f for name, f in model.model_fields.items() if step in (name, f.alias)), None)
            annotation: Any = found.annotation if found else None
        else:
            annotation = model
        model = _model_in(annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> Any:
    """The pydantic model inside `tuple[M, ...]`, `dict[str, M]` or `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
