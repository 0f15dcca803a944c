"""The sources that a conversion needs beside the checkpoint itself: found, or asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llava_remap.checkpoint import Checkpoint, InMemory, has_file, parts_beside, read_object
from llava_remap.core import Problem, RemapError, quote
from llava_remap.jobs.apply import needed_sources
from llava_remap.jobs.derived_problems import no_tokenizer_note
from llava_remap.routing.fits import Fit
from llava_remap.rulefile import RuleFile
from llava_remap.source.sources import (
    TRAINING_STEP,
    is_there,
    last_part,
    named_for,
    open_first,
    open_given,
    open_needed,
    open_source,
    shown,
)
from llava_remap.target_model import STOCK, read_vocabulary, stock_name

#: Asks a person for a source, by its name and the problems of finding it. Returns a SRC; an empty
#: text from a person who gives none.
Ask = Callable[[str, Sequence[Problem]], str]
#: The source that brings a tokenizer if the model has none.
_TOKENIZER = "language_model"


@dataclass(frozen=True, slots=True)
class Request:
    """What a user wants to be converted.

    Attributes:
        source: the SRC.
        rules: the rule file that the user named; None for the one that fits.
        parts: every SRC by its source's name: what `source` is, and what was given beside it.
        given: the sources that were given beside it.
        offline: whether only earlier downloads are taken from the hub.
    """

    source: str
    rules: str | Path | None
    parts: Mapping[str, str | InMemory]
    given: Mapping[str, str | InMemory]
    offline: bool = False

    def command(self, *, rules: str | Path | None = None, **further: str) -> str:
        """The command that converts the same with a rule file and further sources."""
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
        found: how each of them was found that the user didn't give.
        opened: the checkpoints, with the defaults that are taken for other sources.
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
                replace(p, fix=f"{p.fix} The whole command: {command}".strip()) for p in problems
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

    A source is a folder beside the checkpoint that has the name of the part, or of what the
    checkpoint's own files name; else what these name, or the rule file's default, on this disk or
    on the hub; else what `ask` returns. A tokenizer that a step of a training lacks is taken from
    the training's folder.

    Args:
        fit: what is known of the rule file and the checkpoint.
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
        if (near := _beside(checkpoint, first, named, "its own files give")) is not None:
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
        near = _beside(checkpoint, name, named_for(rules, name, config), "its config gives")
        if near is not None:
            search.take(name, *near)
        elif name in needed:
            search.opened, problems, _ = open_needed(
                rules, search.opened, [name], config, request.offline
            )
            if problems:
                search.demand(name, problems)
        elif fit is not None and fit.needs:
            search.demand(name, fit.needs)
    _find_tokenizer(search)
    return Further({**request.parts, **search.places}, search.found, search.opened)


def _beside(checkpoint: Checkpoint, name: str, named: str, by: str) -> tuple[str, str] | None:
    """Where a source lies near a checkpoint, and how it was found.

    Args:
        named: the path or hub id that the checkpoint's files name, or else the default; maybe
            empty.
        by: who names it.
    """
    folder = checkpoint.folder or checkpoint.path.parent
    if checkpoint.folder is not None and name in (inside := parts_beside(folder)):
        return inside[name], "a folder of the checkpoint's"
    if not named or is_there(Path(named).expanduser()):
        return None
    around = folder.resolve() if folder.name in ("", "..") else folder
    for above in (around.parent, folder, Path()):
        place = above / last_part(named)
        is_other = not has_file(place / "config.json") or place.resolve() == folder.resolve()
        if not is_other and not _is_other_kind(place, named):
            return str(place), f"a folder beside the checkpoint with the name that {by}: {named}"
    return None


def _is_other_kind(folder: Path, named: str) -> bool:
    """Whether a folder has the config of another kind of tower than the stock tower that is named:
    `siglip_vision_model` where it is `clip_vision_model`.
    """
    if (stock := STOCK.get(stock_name(named) or "")) is None:
        return False
    config = read_object(folder / "config.json", "LR113", "Download or copy it again.")
    kinds = (str(values.get("model_type")).partition("_")[0] for values in (stock, config))
    return len({*kinds}) > 1


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
