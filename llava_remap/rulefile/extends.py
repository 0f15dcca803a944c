"""Merges a rule file's tree with the trees of all files that it extends."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_remap.core.files import is_regular_file
from llava_remap.core.problem import Mark, refuse
from llava_remap.rulefile.schema import ORIGINS, SCHEMA_VERSIONS
from llava_remap.rulefile.yaml_text import Node, read_yaml

#: The lists of rules.
RULES = ("prepare", "names", "tensors")
#: Fields about the file itself, which files that extend it don't inherit.
_OWN = ("schema", "name", "version", "summary", "changes", "extends", "tests")
#: Bytes of a file of Jinja.
_LARGEST_TEMPLATE = 100_000
#: Files that extend one another in a row. The longest shipped chain has five.
_MAX_CHAIN = 20
#: Entries of all lists `extends` that lead to one file. A shipped file has about 20.
_MAX_PARENTS = 200
#: Bytes of all files of Jinja together. A file counts as often as it is named.
_MOST_JINJA = 1_000_000


_FEWER = "Let this file extend the needed files directly."


@dataclass(frozen=True, slots=True)
class Extended:
    """Rule files that were read. Each is merged with its parents once, however often it is named.

    Attributes:
        shipped: the folder to search for a parent that isn't beside its child.
        texts: the bytes of every file read, parents before their children.
    """

    shipped: Path
    texts: dict[Path, bytes] = field(default_factory=dict)
    _trees: dict[Path, Node] = field(default_factory=dict)
    #: A file's name in messages → the names of all files that it extends, directly or not.
    _above: dict[str, set[str]] = field(default_factory=dict)
    #: Each entry of a list `extends`, and the size of each file of Jinja, in the order of reading.
    _parents: list[str] = field(default_factory=list)
    _jinja: list[int] = field(default_factory=list)

    def merge(self, path: Path, chain: tuple[Path, ...] = ()) -> Node:
        """The tree of a file, merged with its parents' trees. `chain`: the files that lead to it,
        each extending the next.

        Raises:
            RemapError: LR200, LR201, LR209 and LR210.
        """
        here = path.resolve()
        if here in self._trees:
            return self._trees[here]
        root = read_yaml(path, shown(path))
        _check_version(root)
        above = self._above[shown(path)] = set()
        merged: dict[str, Node] = {}
        for parent in root.list_at("extends"):
            if not isinstance(parent.value, str):
                raise refuse(
                    "LR201",
                    "`extends` is a list of files.",
                    "Write a list: extends: [parts/llava.yaml].",
                    place=parent.mark,
                )
            self._parents.append(parent.value)
            if len(self._parents) > _MAX_PARENTS:
                raise refuse(
                    "LR210",
                    f"more than {_MAX_PARENTS} entries of `extends` lead to one file.",
                    _FEWER,
                    place=parent.mark,
                )
            found = self._find(path, parent.value, parent.mark)
            links = [*chain, here, found.resolve()]
            if links[-1] in links[:-1]:
                circle = " → ".join(map(shown, links))
                raise refuse(
                    "LR210",
                    f"`extends` runs in a circle: {circle}.",
                    "Remove one of them.",
                    place=parent.mark,
                )
            if len(links) > _MAX_CHAIN:
                raise refuse(
                    "LR210",
                    f"more than {_MAX_CHAIN} files extend one another in a row.",
                    _FEWER,
                    place=parent.mark,
                )
            tree = self.merge(found, (*chain, here))
            name = tree.mark.file  # as it was spelt when it was read first
            above |= {name} | self._above[name]
            handed_on = {key: node for key, node in tree.entries.items() if key not in _OWN}
            merged = self._merge_parents(merged, handed_on, root.entries, parent.mark)
        _check_ids(root)
        self.texts[here] = path.read_bytes()
        self._trees[here] = tree = Node(
            _override(merged, self._with_templates(path, root).entries), root.mark
        )
        return tree

    def _with_templates(self, path: Path, root: Node) -> Node:
        """The tree of a file, with the content of each chat template's `files` as its `text`."""
        processor = root.entries.get("processor")
        templates = processor.entries.get("chat_templates") if processor else None
        if processor is None or templates is None or not templates.entries:
            return root
        read = dict(templates.entries)
        for name, template in templates.entries.items():
            parts = template.list_at("files")
            if "text" in template.entries and parts:
                raise refuse(
                    "LR201",
                    f"the chat template `{name}` has both `files` and a `text`.",
                    "Remove one of them.",
                    place=template.mark,
                )
            # Validation reports entries of `files` that aren't names of files.
            if parts and all(isinstance(part.value, str) for part in parts):
                text = "".join(self._template(path, str(part.value), part.mark) for part in parts)
                read[name] = replace(
                    template, value={**template.entries, "text": Node(text, parts[0].mark)}
                )
        inside = replace(
            processor,
            value={**processor.entries, "chat_templates": replace(templates, value=read)},
        )
        return replace(root, value={**root.entries, "processor": inside})

    def _template(self, child: Path, name: str, mark: Mark) -> str:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise refuse(
                "LR201",
                f"the chat template `{name}` is not beside {child.name}.",
                "Put it there, or below; a rule file can't take in any file of the machine.",
                place=mark,
            )
        path = next(
            (folder / name for folder in (child.parent, self.shipped) if is_file(folder / name)),
            None,
        )
        if path is None:
            raise refuse(
                "LR201",
                f"no file `{name}` is beside {child.name} or among the shipped ones.",
                "Write the path relative to this file, or chat/NAME.jinja for a shipped template.",
                place=mark,
            )
        if path.stat().st_size > _LARGEST_TEMPLATE:
            raise refuse(
                "LR201",
                f"`{name}` has more than {_LARGEST_TEMPLATE} bytes.",
                "Name a chat template.",
                place=mark,
            )
        self.texts[path.resolve()] = content = path.read_bytes()
        self._jinja.append(len(content))
        if sum(self._jinja) > _MOST_JINJA:
            raise refuse(
                "LR201",
                f"the chat templates have more than {_MOST_JINJA} bytes together.",
                "Name fewer files.",
                place=mark,
            )
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise refuse("LR201", f"`{name}` isn't UTF-8.", "Save it so.", place=mark) from None

    def _find(self, child: Path, name: str, mark: Mark) -> Path:
        """The file of a name in `extends`. As on the command line, the name may lack its `.yaml`
        and may begin with `rules/`.
        """
        for folder, called in ((child.parent, name), (self.shipped, name.removeprefix("rules/"))):
            for spelt in (called, f"{called}.yaml"):
                if is_file(folder / spelt):
                    return folder / spelt
        shipped = [
            path.relative_to(self.shipped).as_posix()
            for path in sorted(self.shipped.rglob("*.yaml"))
        ]
        near = difflib.get_close_matches(
            name.removesuffix(".yaml"), [file.removesuffix(".yaml") for file in shipped], 1
        )
        raise refuse(
            "LR210",
            f"`{name}` is neither beside {child.name} nor a shipped file.",
            f"Did you mean `{near[0]}.yaml`?"
            if near
            else "Write the path relative to this file, or parts/NAME.yaml for a shipped part.",
            place=mark,
        )

    def _merge_parents(
        self,
        before: dict[str, Node],
        after: dict[str, Node],
        child: Mapping[str, Node],
        mark: Mark,
        path: tuple[str, ...] = (),
    ) -> dict[str, Node]:
        """The fields of two parents, merged in order. LR210 for a field that they set differently
        and that the child doesn't set.
        """
        merged = dict(before)
        for key, node in after.items():
            old, here = merged.get(key), (*path, key)
            if old is None:
                merged[key] = node
            elif _merges(here, old, node):
                own = child.get(key)
                inside = self._merge_parents(
                    old.entries, node.entries, own.entries if own else {}, mark, here
                )
                merged[key] = Node(inside, old.mark, old.key_mark)
            elif _is_rules(here, old, node):
                merged[key] = Node(self._join(old.items, node.items), old.mark, old.key_mark)
            elif not self._settled(old, node):
                if key not in child and old.plain != node.plain and not self._settled(node, old):
                    raise refuse(
                        "LR210",
                        f"two parents give `{key}` different values: {old.mark} and {node.mark}.",
                        f"Set `{key}` in this file.",
                        place=mark,
                    )
                merged[key] = node
        return merged

    def _join(self, first: tuple[Node, ...], second: tuple[Node, ...]) -> tuple[Node, ...]:
        """The rules of two parents. A rule of the second replaces the first's rule with the same
        id, unless the first parent extends the file of the second's rule.
        """
        mine = {_rule_id(node): node for node in first}
        kept = tuple(
            node
            for node in second
            if _rule_id(node) not in mine or not self._settled(mine[_rule_id(node)], node)
        )
        replaced, others = _replaced(first, kept)
        return (*replaced, *others)

    def _settled(self, new: Node, old: Node) -> bool:
        """Whether the file of `new` extends the file of `old`, so that `new` has replaced `old`."""
        return old.mark.file in self._above.get(new.mark.file, ())


def shown(path: Path) -> str:
    """The path relative to the current folder if possible, else the path itself."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):  # it is elsewhere, or the current folder is gone
        return str(path)


def is_file(path: Path) -> bool:
    """Whether there is a file. A folder may have the name of a shipped rule file without `.yaml`,
    and is no error.

    Raises:
        RemapError: LR200 if the path exists and can't be read as a file.
    """
    try:
        return is_regular_file(path)
    except OSError as error:
        if error.errno == errno.EISDIR and path.suffix not in (".yaml", ".jinja"):
            return False
        raise refuse(
            "LR200",
            f"`{path}` can't be read: {error.strerror}.",
            "Put a file there that you may read.",
        ) from None


def _check_version(root: Node) -> None:
    version = root.entries.get("schema")
    if version is None or version.value not in SCHEMA_VERSIONS or isinstance(version.value, bool):
        what = (
            "the field `schema` is missing"
            if version is None
            else f"version `{version.plain}` of the rule language is unknown"
        )
        raise refuse(
            "LR201",
            f"{what}; known: {', '.join(map(str, SCHEMA_VERSIONS))}.",
            "Start the file with `schema: 1`.",
            place=(version or root).mark,
        )


def _rule_id(node: Node) -> str | None:
    """The rule's id; None if it has no id or one that isn't text, which validation reports."""
    found = node.entries.get("id")
    return found.value if found is not None and isinstance(found.value, str) else None


def _check_ids(root: Node) -> None:
    """LR209: two rules of one list in one file have the same id. In a parent, the id marks the rule
    to replace.
    """
    for kind in RULES:
        seen: dict[str | None, Node] = {}
        for node in root.list_at(kind):
            name = _rule_id(node)
            first = seen.setdefault(name, node)
            if name is not None and first is not node:
                raise refuse(
                    "LR209",
                    f"the id `{name}` in `{kind}` is taken by the rule at line {first.mark.line}.",
                    "Give one of them another id.",
                    place=node.mark,
                )


def _merges(path: tuple[str, ...], old: Node, new: Node) -> bool:
    """Whether two mappings at this place are merged. A config value whose origin differs from its
    parent's isn't: it replaces the parent's value.
    """
    if not isinstance(old.value, dict) or not isinstance(new.value, dict):
        return False
    origins = [key for key in new.value if key in ORIGINS]
    is_config_value = len(path) == 3 and path[1] == "config"
    return not is_config_value or not origins or any(key in old.value for key in origins)


def _is_rules(path: tuple[str, ...], old: Node, new: Node) -> bool:
    return (
        len(path) == 1
        and path[0] in RULES
        and isinstance(old.value, tuple)
        and isinstance(new.value, tuple)
    )


def _replaced(first: tuple[Node, ...], second: tuple[Node, ...]) -> tuple[list[Node], list[Node]]:
    """The first list of rules, with each rule replaced that has the id of a rule in the second;
    and the remaining rules of the second.
    """
    new = {_rule_id(node): node for node in second}
    known = {_rule_id(node) for node in first}
    return (
        [new.get(_rule_id(node), node) for node in first],
        [node for node in second if _rule_id(node) not in known],
    )


def _override(
    parents: dict[str, Node], own: dict[str, Node], path: tuple[str, ...] = ()
) -> dict[str, Node]:
    """The parents' fields, overridden by the child's: mappings are merged in the parents' order,
    the child's rules stand in front, and all else is replaced.
    """
    merged = dict(parents)
    for key, node in own.items():
        old, here = parents.get(key), (*path, key)
        value: Any = node.value
        if old is not None and _merges(here, old, node):
            value = _override(old.entries, node.entries, here)
        elif old is not None and _is_rules(here, old, node):
            inherited, own_rules = _replaced(old.items, node.items)
            value = (*own_rules, *inherited)
        merged[key] = Node(value, node.mark, node.key_mark)
    return merged
