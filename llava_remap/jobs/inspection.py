"""`llava-remap inspect`: what a checkpoint is, and which rule file fits it, by the same check as in
`apply`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, manifest_text
from llava_remap.core import Problem, quote, refuse, several
from llava_remap.jobs.apply import layout_refusals
from llava_remap.jobs.beside import find_beside
from llava_remap.jobs.facts import Facts, describe
from llava_remap.jobs.fit_plans import planned
from llava_remap.routing.advice import advice
from llava_remap.routing.fits import Fit, fits, shipped
from llava_remap.routing.identify import HF_LAYOUTS, already_converted
from llava_remap.rulefile import RuleFile
from llava_remap.source.defaults import named_for, taken_by_default
from llava_remap.source.sources import is_there
from llava_remap.target_model import CLASSIC, STOCK, Projector, nearest_layout, stock_name

#: Stands in a command for a path that only the user knows.
PLACEHOLDER = "DIR"
_NAMED = "its own files name it"
_ABSENT = "the checkpoint has no tower inside"
_UNCHECKED = "checks that need the tower's sizes aren't done yet"


@dataclass(frozen=True, slots=True)
class Needed:
    """A source that a rule file needs beside the inspected checkpoint.

    Attributes:
        source: its name in the rule file.
        place: the repository or path that `apply` would take; empty if the user has to give it.
        download: whether `place` is a repository of the hub.
        why: one line: why it is needed, and who names `place`.
    """

    source: str
    place: str
    download: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "place": self.place or None,
            "download": self.download,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, repr=False)
class Inspection:
    """The result of inspecting a checkpoint.

    Attributes:
        checkpoint: the inspected checkpoint, or the first of several parts.
        fits: every shipped rule file, the nearest first. If its names fit, it was planned.
        layout: a layout of transformers that has `named` of the names; empty for an original.
        problems: reasons not to convert a checkpoint in a layout of transformers; LR109 says that
            a conversion is not needed.
        advice: what to do if no rule file fits; empty if one does.
        facts: the facts of the checkpoint, or of each part.
        given: the SRC of each source, for the command, if parts were inspected; `DIR` for a model
            that nothing names.
        planned: whether fitting rule files were planned. Parts without their model are only
            compared.
        apart: whether the SRC is a folder with a folder for each part. `checkpoint` is the first
            part.
        source: the SRC as it was given; empty for tensors in memory.
    """

    checkpoint: Checkpoint
    fits: tuple[Fit, ...]
    layout: str
    named: int
    problems: tuple[Problem, ...]
    advice: str
    facts: tuple[Facts, ...]
    given: Mapping[str, str] = field(default_factory=dict)
    planned: bool = True
    apart: bool = False
    source: str = ""

    def __repr__(self) -> str:
        fitting = [fit.rules for fit in self.fitting]
        return f"<Inspection of {self.checkpoint.location!r}: fitting={fitting}>"

    @property
    def fitting(self) -> list[Fit]:
        """The rule files that fit."""
        return [fit for fit in self.fits if fit.fits]

    @property
    def converted(self) -> bool:
        """Whether no conversion is needed: transformers loads the checkpoint as it is."""
        every = self.named == len(self.checkpoint.catalog)
        return self.layout == CLASSIC and every and self.fits[0].fits

    def needed(self, fit: Fit) -> list[Needed]:
        """The sources that a rule file needs beside the inspected checkpoint."""
        needed = [self._needed(fit, name) for name in fit.also]
        if self.planned:
            return needed
        place = self.given[fit.source]
        known = place != PLACEHOLDER
        why = f"the model that it was trained from; {_NAMED if known else 'no file names it'}"
        return [Needed(fit.source, place if known else "", known, why), *needed]

    def command(self, fit: Fit) -> list[str]:
        """The words of the whole command that converts by a rule file. `DIR` stands for a path that
        only the user knows.
        """
        location = PLACEHOLDER if self.checkpoint.in_memory else self.checkpoint.location
        # With the source's name, a path with `=` in it isn't taken for one.
        whole = f"{fit.source}={location}" if "=" in location else location
        given = [f"{name}={place}" for name, place in self.given.items()] or [whole]
        given += [
            f"{one.source}={one.place or PLACEHOLDER}"
            for one in self.needed(fit)
            if one.source not in self.given
        ]
        options = [word for text in given for word in ("--source", text)]
        return ["llava-remap", "apply", fit.rules, *options, *self._dry]

    def short_command(self, fit: Fit) -> list[str]:
        """The words of the command that chooses the rule file and finds the sources by itself.
        `DIR` stands for a path that only the user knows. Empty for tensors in memory and a tower
        alone, which the command `convert` doesn't take.
        """
        if not self.source or self.given.keys() == {"model", "vision_tower"}:
            return []
        unknown = [one.source for one in self.needed(fit) if not one.place]
        options = [word for name in unknown for word in ("--source", f"{name}={PLACEHOLDER}")]
        chosen = ["--rules", fit.rules] if len(self.fitting) > 1 and self.planned else []
        return ["llava-remap", "convert", self.source, *chosen, *options, *self._dry]

    @property
    def _dry(self) -> list[str]:
        return ["--dry-run"] if any(f.checkpoint.is_manifest for f in self.facts) else []

    def manifest(self) -> str:
        """The text of the checkpoint's manifest.

        Raises:
            RemapError: LR211 for a folder with several checkpoints.
        """
        if self.apart:
            places = [facts.checkpoint.location for facts in self.facts]
            raise refuse(
                "LR211",
                f"a manifest describes one checkpoint, but {len(places)} are given: "
                f"{several(places)}.",
                f"Inspect one of them: llava-remap inspect {quote(places[0])} --manifest FILE.json",
            )
        return manifest_text(self.checkpoint)

    def to_json(self) -> dict[str, Any]:
        """The document `llava-remap/inspection`, version 1."""
        best = self.fitting[0] if len(self.fitting) == 1 and not self.converted else None
        return {
            "format": "llava-remap/inspection",
            "format_version": 1,
            "checkpoints": [facts.to_json() for facts in self.facts],
            "layout": {"name": self.layout, "names": self.named} if self.layout else None,
            "converted": self.converted,
            "fitting": [fit.rules for fit in self.fitting],
            "rule_files": [self._fit_json(fit) for fit in self.fits],
            "command": self.command(best) if best else None,
            "short_command": (self.short_command(best) or None) if best else None,
            "advice": self.advice or None,
            "problems": [problem.to_json() for problem in self.problems],
        }

    def _fit_json(self, fit: Fit) -> dict[str, Any]:
        return {
            "name": fit.rules,
            "fits": fit.fits,
            "planned": fit.fits and self.planned,
            "summary": fit.summary,
            "class": fit.class_name or None,
            "mapped": fit.mapped,
            "names": fit.total,
            "reasons": fit.reasons,
            "needed": [one.to_json() for one in self.needed(fit)] if fit.fits else [],
            "command": self.command(fit) if fit.fits else None,
        }

    def _needed(self, fit: Fit, name: str) -> Needed:
        """A needed source, mostly a tower, and the place to take it from."""
        rules = shipped()[fit.rules]
        config = next((f.checkpoint.config for f in self.facts if f.said_tower), None)
        if (near := self._beside(rules, name, config or self.checkpoint.config)) is not None:
            why = f"{_ABSENT}; {near[1]}; {_UNCHECKED}"
            if fit.needs:
                why = f"{fit.needs[0].placed_cause} This may be it: {near[1]}"
            return Needed(name, near[0], download=False, why=why)
        place, who = taken_by_default(rules, name, config or self.checkpoint.config)
        why = "; ".join(filter(None, (_ABSENT, who)))
        if fit.needs:
            why = fit.needs[0].placed_cause
            place = "" if stock_name(place) in STOCK else place
        elif place and (reason := self._other_width(place)):
            why, place = f"{_ABSENT}, and {place}, which the config names, {reason}", ""
        if not fit.needs:
            why += f"; {_UNCHECKED}"
        download = bool(place) and not is_there(Path(place))
        return Needed(name, place, download, why)

    def _beside(
        self, rules: RuleFile, name: str, config: Mapping[str, Any] | None
    ) -> tuple[str, str] | None:
        """Where a source lies near the checkpoint, and how it was found, as in `convert`."""
        if self.checkpoint.in_memory:
            return None
        return find_beside(
            self.checkpoint, name, named_for(rules, name, config), "its config gives"
        )

    def _other_width(self, tower: str) -> str:
        """Why a stock tower can't be the projector's, by its width; empty if it can."""
        stock = STOCK.get(stock_name(tower) or "")
        for part in (part for facts in self.facts for part in facts.components):
            if stock and isinstance(part, Projector) and part.widths:
                width, wanted = int(stock["hidden_size"]), part.widths[0]
                return f"is {width} wide: the projector takes {wanted}" if wanted % width else ""
        return ""


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Compare a checkpoint with every shipped rule file, from headers alone and without the hub.

    If the names and `detect` of a rule file fit, it is planned as in `apply`. It fits only if the
    plan is complete.
    """
    found = fits(checkpoint)
    names = list(checkpoint.catalog)
    layout, classic = nearest_layout(names)
    others = max(fit.mapped for fit in found if fit.rules != HF_LAYOUTS)
    problems = already_converted(checkpoint, names, others, layout_refusals)
    found = sorted(
        (planned(fit, {fit.source: checkpoint}) for fit in found), key=lambda fit: not fit.fits
    )
    return Inspection(
        checkpoint,
        tuple(found),
        layout if problems else "",
        len(classic),
        tuple(problems),
        "" if found[0].fits else advice(checkpoint, found),
        (describe(checkpoint),),
    )
