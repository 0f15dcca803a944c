"""The result of a comparison: plain data, whose fields are those of the JSON document
(`llava-remap/diff`, version 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

Which = Literal["a", "b"]
Shape = tuple[int, ...]

FORMAT = "llava-remap/diff"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things that are compared.

    Attributes:
        location: the path as given, or the hub's id and commit.
        form: its kind and storage format, in words.
        tensors, nbytes: number and bytes of its tensors; for a plan, of the tensors it writes.
    """

    location: str
    form: str
    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layouts:
    """Two layouts of transformers. All names of the comparison are then classic names.

    Attributes:
        a, b: the layout of either side.
        renamed: how many common tensors have different names.
    """

    a: str
    b: str
    renamed: int


@dataclass(frozen=True, slots=True)
class OnlyIn:
    """A tensor that only one side has."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Shapes:
    """A tensor of different shapes. Its values aren't compared."""

    name: str
    a: Shape
    b: Shape


@dataclass(frozen=True, slots=True)
class Dtypes:
    """A tensor of different dtypes. Its values are compared as exact numbers."""

    name: str
    a: str
    b: str


Stored = Literal["shared", "apart", "equal", "alone"]
"""How several names are stored: as one tensor (`shared`), as a tensor for each name (`apart`), as a
tensor for each name with the same values (`equal`), or for some of the names only (`alone`).
"""


@dataclass(frozen=True, slots=True)
class Tie:
    """Names of one tensor, which the two sides store in different ways."""

    names: tuple[str, ...]
    a: Stored
    b: Stored


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a tensor.

    Attributes:
        value: the number, or a text if JSON has no such number: `nan`, `inf`, `-inf`, complex
            numbers.
        bits: the bits as hexadecimal digits.
    """

    value: float | int | str
    bits: str


@dataclass(frozen=True, slots=True)
class Place:
    """The first element, in row-major order, that differs."""

    index: tuple[int, ...]
    a: Element
    b: Element


@dataclass(frozen=True, slots=True)
class Values:
    """A tensor with other values.

    Attributes:
        elements: number of elements.
        differing: number of differing elements: by their bits, or, if the dtypes differ, by their
            numbers.
        max_abs: the largest distance between differing elements that are finite on both sides; None
            if there are none.
        not_finite: number of differing elements that are inf or NaN on at least one side.
        nan_bits: number of differing elements that are NaN on both sides, with other bits.
        zero_signs: number of differing elements that are zero on both sides, with another sign.
        rounded_in: the side whose elements are the other side's, rounded to nearest; None if
            neither side's are.
    """

    name: str
    elements: int
    differing: int
    max_abs: float | int | None
    not_finite: int
    nan_bits: int
    zero_signs: int
    first: Place
    rounded_in: Which | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A value that differs.

    Attributes:
        key: the keys that lead to the value, joined by dots; the position in a list as `[0]`.
        only_in: the side that has the key, if only one side has it. The other side's value is None.
    """

    key: str
    a: Any
    b: Any
    only_in: Which | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A small file that differs.

    Attributes:
        only_in: the side that has the file, if only one side has it.
        rows: values that differ.
        spelling: values that differ in spelling, but are the same for the class `read_by`.
        read_by: the class of transformers that read both configs, or empty.
    """

    name: str
    only_in: Which | None = None
    rows: tuple[Row, ...] = ()
    spelling: tuple[Row, ...] = ()
    read_by: str = ""

    @property
    def differs(self) -> bool:
        return self.only_in is not None or bool(self.rows)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text, and the ids that the two tokenizers make of it."""

    text: str
    a: tuple[int, ...]
    b: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tokenizers:
    """Two tokenizers that differ.

    Attributes:
        only_in: the side that has a tokenizer, if only one side has one.
        words: words with different ids, or of one side only; the ids are the values.
        added: added tokens whose flags differ; the flags are the values.
        special: roles (`bos_token`, …) with different words; the words are the values.
        files: other values in the tokenizer's files that differ.
        texts: the texts with different ids.
        texts_tried: number of texts tried; 0 unless both tokenizers could be opened.
        reason: why no text was tried; empty if texts were tried.
    """

    only_in: Which | None = None
    words: tuple[Row, ...] = ()
    added: tuple[Row, ...] = ()
    special: tuple[Row, ...] = ()
    files: tuple[File, ...] = ()
    texts: tuple[Encoded, ...] = ()
    texts_tried: int = 0
    reason: str = ""

    @property
    def differ(self) -> bool:
        parts = (self.words, self.added, self.special, self.texts)
        return self.only_in is not None or any(parts) or any(f.differs for f in self.files)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation, and the prompts of two chat templates, or `error: …` if a template fails."""

    conversation: list[dict[str, Any]]
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template that differs.

    Attributes:
        name: `default`, or the name of a further template.
        only_in: the side that has the template, if only one side has it.
        line: the first line of the text that differs, from 1.
        tried: number of conversations rendered; 0 if a template couldn't be rendered.
        differing: number of conversations with different prompts.
        first: the first such conversation.
        reason: why no conversation was rendered; empty if some were.
    """

    name: str
    only_in: Which | None = None
    line: int = 0
    tried: int = 0
    differing: int = 0
    first: Rendered | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a plan that differs.

    Attributes:
        part: the list of the plan that has it: `mapped`, `dropped`, …; `plan` for other values.
        name: the entry's name in that list: a target or source tensor, a problem, a file.
        only_in: the side that has the entry, if only one side has it.
        rows: values that differ; for an entry that only one side has, all its values.
    """

    part: str
    name: str
    only_in: Which | None
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """All differences between two checkpoints or two plans. Every list is complete.

    Attributes:
        of: what was compared.
        tensors: how many tensors both sides have.
        values_compared: how many of these tensors were compared by value.
        values_reason: why values weren't compared; empty if they were.
        values: the tensors with different values.
        files: configs and processor files; the tokenizer's files are in `tokenizer`.
        entries: for plans, the entries that differ.
        notes: what was not compared, and why.
    """

    of: Literal["checkpoints", "plans"]
    a: Side
    b: Side
    tensors: int = 0
    layout: Layouts | None = None
    only_in_a: tuple[OnlyIn, ...] = ()
    only_in_b: tuple[OnlyIn, ...] = ()
    shapes: tuple[Shapes, ...] = ()
    dtypes: tuple[Dtypes, ...] = ()
    ties: tuple[Tie, ...] = ()
    values_compared: int = 0
    values_reason: str = ""
    values: tuple[Values, ...] = ()
    files: tuple[File, ...] = ()
    tokenizer: Tokenizers | None = None
    templates: tuple[Template, ...] = ()
    entries: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def differs(self) -> tuple[str, ...]:
        """The kinds of differences that were found: `layout`, `names`, `shapes`, `dtypes`, `ties`,
        `values`, `files`, `tokenizer`, `chat_template`, `plan`. Differences only in storage or
        spelling don't count.
        """
        kinds = {
            "names": self.only_in_a or self.only_in_b,
            "shapes": self.shapes,
            "dtypes": self.dtypes,
            "ties": self.ties,
            "values": self.values,
            "layout": self.layout,
            "files": any(file.differs for file in self.files),
            "tokenizer": self.tokenizer is not None and self.tokenizer.differ,
            "chat_template": self.templates,
            "plan": self.entries,
        }
        return tuple(kind for kind, found in kinds.items() if found)

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return not self.differs

    def to_json(self) -> dict[str, Any]:
        """The document `llava-remap/diff`, version 1: the fields of this class and its values."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return {**head, "equal": self.equal, "differs": list(self.differs), **_json(self)}


def _json(found: Any) -> Any:
    """The fields of an object as JSON; values from files are JSON already."""
    if is_dataclass(found):
        return {field.name: _json(getattr(found, field.name)) for field in fields(found)}
    return [_json(one) for one in found] if isinstance(found, tuple) else found
