"""The sources that a conversion needs beside the checkpoint itself: found, or asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import TRAINING_STEP, Checkpoint, InMemory
from llava_remap.core import Problem, RemapError, quote
from llava_remap.jobs.apply import HEADERS_ALONE, needed_sources, plan_checkpoints
from llava_remap.jobs.beside import find_beside, find_tower
from llava_remap.jobs.derived_problems import no_tokenizer_note
from llava_remap.routing.fits import Fit
from llava_remap.rulefile import RuleFile
from llava_remap.source.defaults import named_for, open_first, open_needed
from llava_remap.source.sources import open_given, open_source, shown
from llava_remap.target_model import read_vocabulary

#: Asks a person for a source, with its name and the problems of finding it. Returns a SRC, or an
#: empty text if the person gives none.
Ask = Callable[[str, Sequence[Problem]], str]
#: The source of a tokenizer if the model has none.
_TOKENIZER = "language_model"


@dataclass(frozen=True, slots=True)
class Request:
    """A conversion that a user asked for.

    Attributes:
        source: the SRC.
        rules: the rule file that the user named; None for the one that fits.
        parts: every SRC by its source's name: the parts of `source`, and the sources given beside
            it.
        given: the sources given beside `source`.
        offline: whether only earlier downloads are taken from the hub.
    """

    source: str
    rules: str | Path | None
    parts: Mapping[str, str | InMemory]
    given: Mapping[str, str | InMemory]
    offline: bool = False

    def command(self, *, rules: str | Path | None = None, **further: str) -> str:
        """The command for this conversion with a rule file and further sources."""
        named = rules or self.rules
        sources = {**self.given, **further}
        options = [f"--source {quote(f'{name}={shown(s)}')}" for name, s in sources.items()]
        return " ".join(
            [
                f"llava-remap convert {quote(self.source)}",
                *([f"--rules {quote(str(named))}"] if named else []),
                *options,
            ]
        )


@dataclass(frozen=True, slots=True)
class Further:
    """The sources of a conversion.

    Attributes:
        sources: the SRC of each source that is given to `plan`.
        found: for each of these sources that the user didn't give, how it was found.
        opened: the checkpoints, including the defaults of other sources.
    """

    sources: Mapping[str, str | InMemory]
    found: Mapping[str, str]
    opened: Mapping[str, Checkpoint]


@dataclass(slots=True)
class _Search:
    rules: RuleFile
    request: Request
    ask: Ask | None
    opened: dict[str, Checkpoint]
    found: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def take(self, name: str, place: str, how: str) -> None:
        """Open a source.

        Raises:
            RemapError: as `open_source`.
        """
        rules, source = self.rules, self.rules.text.sources[name]
        opened = open_source(
            name,
            place,
            source.use,
            first=name == rules.first_source,
            part=source.overrides,
            offline=self.request.offline,
        )
        every = {**self.opened, name: opened}
        self.opened = {name: every[name] for name in rules.text.sources if name in every}
        self.places[name], self.found[name] = place, how

    def demand(self, name: str, problems: Sequence[Problem]) -> None:
        """Ask for a source until it can be opened.

        Raises:
            RemapError: with the problems and the command that gives the source, if nobody is asked
                or the person gives none.
        """
        if not self.asked(name, problems):
            command = self.request.command(**{name: "DIR"})
            raise RemapError(
                replace(p, fix="\n".join(filter(None, (p.fix, f"The whole command: {command}"))))
                for p in problems
            )

    def asked(self, name: str, problems: Sequence[Problem]) -> bool:
        """Ask for a source until it can be opened; False if nobody is asked or none is given."""
        while self.ask is not None and (place := self.ask(name, problems).strip()):
            try:
                self.take(name, place, "as answered")
                return True
            except RemapError as error:
                problems = error.problems
        return False


def further_sources(
    rules: RuleFile, request: Request, fit: Fit | None = None, ask: Ask | None = None
) -> Further:
    """Find the sources that a rule file needs beside those that are given.

    A source is looked for in this order: a folder beside the checkpoint with the name of the part,
    or of the repository that the checkpoint's own files name; that repository or the rule file's
    default, on this disk or on the hub; the answer of `ask`. The own checkpoint of a tower inside
    the model is looked for too if nothing else gives the tower's config. If a step of a training
    lacks the tokenizer, it is taken from the training's folder.

    Args:
        fit: how the rule file fits the checkpoint, if known.
        ask: None if nobody can be asked.

    Raises:
        RemapError: any error of a source that is needed and can't be opened, with the command that
            gives it; as `open_source`.
    """
    search = _Search(rules, request, ask, open_given(rules, request.parts, request.offline))
    checkpoint = next(iter(search.opened.values()))
    first = rules.first_source
    if first not in search.opened:
        named = next((c.base for c in reversed(search.opened.values()) if c.base), "")
        if (near := find_beside(checkpoint, first, named, "its own files give")) is not None:
            search.take(first, *near)
        else:
            try:
                search.opened = open_first(rules, search.opened, request.offline)
            except RemapError as error:
                search.demand(first, error.problems)
    needed, config = needed_sources(rules, search.opened)
    also = fit.also if fit is not None else ()
    for name in dict.fromkeys((*needed, *also)):
        if name in search.opened:
            continue
        near = find_beside(checkpoint, name, named_for(rules, name, config), "its config gives")
        if near is not None:
            search.take(name, *near)
        elif name in needed:
            search.opened, problems, _ = open_needed(
                rules, search.opened, [name], config, request.offline
            )
            if problems:
                search.demand(name, problems)
        elif fit is not None and fit.needs and not _find_tower(search, config):
            search.demand(name, fit.needs)
    _find_tower(search, config)
    _find_tokenizer(search)
    return Further({**request.parts, **search.places}, search.found, search.opened)


def _find_tower(search: _Search, config: Mapping[str, Any] | None) -> bool:
    """Take the own checkpoint of a tower inside the model if only its config makes the plan
    complete, for instance because the tower has other sizes than the stock ones. Returns whether
    it was taken.
    """
    found = find_tower(search.rules, search.opened, config)
    if found is None or _is_complete(search):
        return False
    before = search.opened, dict(search.places), dict(search.found)
    search.take(*found)
    if not (complete := _is_complete(search)):
        search.opened, search.places, search.found = before
    return complete


def _is_complete(search: _Search) -> bool:
    """Whether the plan is complete with the sources that are open."""
    given = {**search.request.parts, **search.places}
    return plan_checkpoints(search.rules, search.opened, given, HEADERS_ALONE).plan.complete


def _find_tokenizer(search: _Search) -> None:
    """Look for the tokenizer of a checkpoint that has none."""
    sources = search.rules.text.sources
    folders = [
        checkpoint.folder
        for name, checkpoint in search.opened.items()
        if "tokenizer" in sources[name].use and checkpoint.folder is not None
    ]
    if _TOKENIZER not in sources or not folders or any(map(read_vocabulary, folders)):
        return
    above = folders[0].resolve().parent
    if TRAINING_STEP.fullmatch(folders[0].resolve().name) and read_vocabulary(above) is not None:
        search.take(_TOKENIZER, str(above), "the training's folder, which has the tokenizer")
    else:
        search.asked(_TOKENIZER, [no_tokenizer_note()])
