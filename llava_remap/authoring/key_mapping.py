"""Turns rules into a dict for `from_pretrained(key_mapping=…)` of transformers, and lists the rules
that such a dict can't express. Pure.

transformers 5.23 reads the dict as follows (`WeightRenaming` in its core_model_loading.py), for
each name of a checkpoint:

- every pattern in turn is searched (`re.search`) in the result of the previous pattern, so all
patterns that match fire, not only the first;
- in a replacement, `\\1` is the pattern's first group; no other group can be used;
- the model's own renamings follow and turn classic names into module names, so the rules' new names
need no change;
- a result that isn't a parameter is reported as unexpected, unless the original name is a
parameter.

In a rule file, only the first match fires. So a new name that a later rule would take again gets an
empty first segment, which no field of a template matches. The last pattern removes this segment.
Dropped names keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from llava_remap.authoring.weight_converters import (
    Converter,
    NoConverterError,
    converter,
    python_text,
)
from llava_remap.core.problem import refuse
from llava_remap.rewrite import CompiledRule, Program, compile_all
from llava_remap.rulefile import (
    Drop,
    Regex,
    Rename,
    RuleFile,
    RuleKind,
    Substitute,
    Template,
    Unwrap,
)

_MARK = "."
_DROPPED = ".dropped."
#: The regex of a field by its kind, without groups. The regex of `{x...}` assumes names without
#: empty segments, as tensors' names are.
_FIELDS = {"": "[^.]+", ":int": "[0-9]+", "...": "[^.].*"}
_ENDS_IN_SEGMENT = "[^.](?:.*[^.])?"


@dataclass(frozen=True, slots=True)
class KeyMapping:
    """The result of `key_mapping`.

    Attributes:
        patterns: regex → replacement, in the order in which they are applied.
        remarks: what the dict can't express, and what else `from_pretrained` needs; one or two
            sentences each.
        converters: the tensor operations. A dict can't express them, so `python` registers them.
        class_name: the target's class; None for a part.
    """

    patterns: dict[str, str]
    remarks: tuple[str, ...]
    converters: tuple[Converter, ...] = ()
    class_name: str | None = None

    @property
    def python(self) -> str:
        """Python that registers everything for the target's class."""
        return python_text([*self.patterns.items()], self.converters, self.class_name)


@dataclass(frozen=True, slots=True)
class _Renaming:
    """A rule as a renaming of transformers.

    Attributes:
        takes, makes: the beginning of every name that the renaming matches, and of every name that
            it makes.
    """

    pattern: str
    replacement: str
    takes: str
    makes: str


class _InexpressibleError(Exception):
    """A rule that equals no single renaming of transformers, with the reason."""


def key_mapping(rules: RuleFile, program: Program) -> KeyMapping:
    """The dict with which `from_pretrained` turns a checkpoint's own names into the target's, as
    far as a dict can.

    The dict only renames: nothing is proved, only one checkpoint is read, and no new rows are made.
    A name that no rule takes is loaded if the model happens to have a parameter of that name.

    Args:
        program: the rule file compiled for the checkpoint, without rules whose `when` doesn't hold.

    Raises:
        RemapError: LR211 if the rules depend on the checkpoint's layout and no checkpoint is given.
    """
    if rules.layouts and not program.names:
        raise refuse(
            "LR211",
            f"the rules of {rules.name} depend on the checkpoint's layout, and no checkpoint is "
            "given.",
            "Give the checkpoint: --source SRC.",
        )
    remarks: list[str] = []

    def renamings(of: Sequence[CompiledRule]) -> Iterator[_Renaming]:
        for compiled in of:
            try:
                yield _renaming(compiled.kind)
            except _InexpressibleError as error:
                remarks.append(
                    f"`{compiled.label}` is left out: {error}. Later rules can take its names."
                )

    steps = [(renaming.pattern, renaming.replacement) for renaming in renamings(program.prepare)]
    names, marked = list(renamings(program.names)), False
    for position, renaming in enumerate(names, 1):
        again = any(
            renaming.makes.startswith(later.takes) or later.takes.startswith(renaming.makes)
            for later in names[position:]
        )
        mark = _MARK if again and not renaming.makes.startswith(_MARK) else ""
        marked |= bool(mark)
        steps.append((renaming.pattern, mark + renaming.replacement))
    if marked:
        steps.append((r"^\.(?!dropped\.)", ""))
        remarks.append(
            "A model loaded in this way can't be saved with its original names: save_pretrained "
            "puts a dot before each name."
        )
    patterns: dict[str, str] = {}
    for pattern, replacement in steps:
        while pattern in patterns:  # two rules with one pattern are two steps
            pattern += "(?:)"
        patterns[pattern] = replacement
    converters = []
    for compiled in program.tensors:
        try:
            converters.append(converter(compiled.operation))
        except NoConverterError as error:
            remarks.append(
                f"`{compiled.label}` is left out: {error}. Its tensors are loaded only if a "
                "parameter has their name."
            )
    if converters:
        remarks.append(
            "A WeightConverter matches its part of a name anywhere, even in modules that the rule "
            "doesn't take. And save_pretrained divides joined tensors into equal parts."
        )
    if any("PermuteForRope" in call for made in converters for call in made.operations):
        remarks.append("PermuteForRope leaves tensors of more than two axes as they are.")
    target = rules.text.target
    return KeyMapping(
        patterns,
        (*remarks, *_remarks(rules, program)),
        tuple(converters),
        target.class_ if target is not None else None,
    )


def _remarks(rules: RuleFile, program: Program) -> Iterator[str]:
    text = rules.text
    taken = {compiled.label: compiled.kind for compiled in program.rules}
    if conditional := [
        compiled.label for compiled in compile_all(rules).rules if compiled.label not in taken
    ]:
        yield f"Rules whose `when` doesn't hold here are left out: {', '.join(conditional)}."
    if wrappers := [label for label, kind in taken.items() if isinstance(kind, Unwrap)]:
        yield (
            "Only one wrapper is removed, and only at the start of a name "
            f"({', '.join(wrappers)}); `apply` removes all wrappers."
        )
    if drops := [label for label, kind in taken.items() if isinstance(kind, Drop)]:
        yield (
            f"Nothing can be dropped ({', '.join(drops)}). The loader reports such names as "
            f"unexpected, with `{_DROPPED}` before them, except rotary_emb.inv_freq and "
            "position_ids, which it ignores. If such a name is a parameter's name, the loader "
            "loads the tensor."
        )
    for position, (name, source) in enumerate(text.sources.items()):
        if (
            "tensors" not in source.use or source.overrides
        ):  # no source overrides the one source that is read
            continue
        if position:
            yield (
                f"Only one checkpoint is read. Parameters that only `{name}` has are missing: the "
                "loader initialises them anew, with a warning."
            )
        elif source.prefix or source.select:
            yield f"`select` and `prefix` of `{name}` are not applied."
    for post_load in text.post_load:
        yield (
            f"`{post_load.use}` doesn't run, so sizes in the config have to be the checkpoint's "
            "own. The loader initialises parameters without a tensor anew, with a warning."
        )
    if text.target is None or text.target.as_ is None:
        yield (
            "The checkpoint's config.json is for the original model. Give the target's config, as "
            "`apply` writes it, as `config=`."
        )


def _renaming(kind: RuleKind) -> _Renaming:
    match kind:
        case Rename():
            made = _of_template(kind.pattern, kind.target)
        case Unwrap():  # only at the start, where save_pretrained can put the wrapper back
            made = _of_template(kind.pattern.at_start, Template("{rest}"))
        case Substitute():
            made = _of_regex(kind.pattern)
        case Drop(pattern=Template() as template):
            takes = _regex(_tokens(template))
            made = _Renaming(f"^(?={takes}$)", _DROPPED, template.prefix, _DROPPED)
        case Drop(pattern=pattern):
            _check_groups(pattern.text)
            made = _Renaming(rf"^(?!\.)(?=.*?(?:{pattern.text}))", _DROPPED, "", _DROPPED)
    if "*." in made.pattern:
        raise _InexpressibleError("transformers reads `*.` in a regex as its own wildcard")
    if re.search(r"[\\^()]", made.replacement.replace(r"\1", "")):
        raise _InexpressibleError(
            f"transformers reads `{made.replacement}` as a pattern, not as text"
        )
    try:
        re.compile(f"(?P<g0>{made.pattern})")
    except re.error as error:
        raise _InexpressibleError(f"Python's own `re` doesn't know its regex: {error}") from None
    return made


def _of_template(from_: Template, to: Template) -> _Renaming:
    if to.computed:
        raise _InexpressibleError("transformers copies numbers, and computes none")
    source, target = _tokens(from_), _tokens(to)
    # The common end of both templates, from a field on, is only a lookahead of the pattern.
    pairs = zip(source[::-1], target[::-1], strict=False)
    tail = len([*takewhile(lambda pair: pair[0][0] == pair[1][0], pairs)])
    while tail and not _is_field(source[-tail]):
        tail -= 1
    end = source[len(source) - tail :]
    head, made = source[: len(source) - tail], target[: len(target) - tail]
    fields = [position for position, token in enumerate(made) if _is_field(token)]
    pattern, replacement = _regex(head, end), _text(made)
    if fields:  # one group has all fields if both templates have them with the same text between
        first, last = fields[0], fields[-1] + 1
        run = [token[0] for token in made[first:last]]
        starts = (
            at for at in range(len(head)) if [token[0] for token in head[at : at + len(run)]] == run
        )
        at = next(starts, None)
        if at is None:
            raise _InexpressibleError(
                "its fields come in another order, or with other text between them, and "
                "transformers has only one group"
            )
        group, after = head[at : at + len(run)], head[at + len(run) :]
        pattern = f"{_regex(head[:at], group)}({_regex(group, after + end)}){_regex(after, end)}"
        replacement = rf"{_text(made[:first])}\1{_text(made[last:])}"
    return _Renaming(f"^{pattern}(?={_regex(end)}$)", replacement, from_.prefix, to.prefix)


def _check_groups(match: str) -> None:
    if re.search(r"\\[0-9]|\(\?P=|\(\?\(", match):
        raise _InexpressibleError(
            "its regex refers to its own group, and transformers puts another group around the "
            "regex"
        )


def _of_regex(regex: Regex) -> _Renaming:
    match, replace = regex.text, (regex.replace or "").replace(r"\g<1>", r"\1")
    _check_groups(match)
    rest = re.sub(r"\((?!\?)[^()]*\)(?![*?{])", "", match, count=1)  # without the first group
    if not match.startswith("^") or "|" in rest:
        if "\\" in replace:
            raise _InexpressibleError(
                "its regex isn't anchored at the start of the name and uses a group, but the only "
                "group is needed for the text before the match"
            )
        return _Renaming(rf"^(?!\.)(.*?)(?:{match})", rf"\1{replace}", "", "")
    if "\\" in replace and re.search(r"\)[*?{]", rest):
        raise _InexpressibleError("its group is optional, so it may have no value")
    pattern = match if regex.prefix else rf"^(?!\.){match[1:]}"
    open_end = (
        "(?:)" if re.search(r"[a-zA-Z0-9]$", match) else ""
    )  # otherwise transformers adds a word boundary
    return _Renaming(pattern + open_end, replace, regex.prefix, replace.partition("\\")[0])


#: A field or a character of a template: its spelling without the kind, and its regex.
_Token = tuple[str, str]


def _tokens(template: Template) -> list[_Token]:
    tokens: list[_Token] = []
    for text, field, kind in template.pieces:
        tokens += [(f"{{{field}}}", _FIELDS[kind])] if field else [(s, re.escape(s)) for s in text]
    return tokens


def _is_field(token: _Token) -> bool:
    return len(token[0]) > 1


def _regex(tokens: Sequence[_Token], follow: Sequence[_Token] = ()) -> str:
    """The regex of `tokens`, which are followed by the tokens of `follow`."""
    following = [*tokens, *follow, (".", "")][1:]
    return "".join(
        _ENDS_IN_SEGMENT if piece == _FIELDS["..."] and after != "." else piece
        for (_, piece), (after, _) in zip(tokens, following, strict=False)
    )


def _text(tokens: Sequence[_Token]) -> str:
    return "".join(spelt for spelt, _ in tokens)
