"""The way back without a record: a checkpoint in a layout of transformers gets its original names
by the inverse of a rule file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Catalog, Checkpoint
from llava_remap.core.arguments import as_path
from llava_remap.core.problem import Problem, RemapError
from llava_remap.core.wording import counted
from llava_remap.execute import Folder, Resumable
from llava_remap.jobs.job import Job, manifest_problems, noted, written_tensors
from llava_remap.jobs.output import output_folder, output_notes, output_problems
from llava_remap.jobs.run import OnPhase, OnProgress, Verify
from llava_remap.jobs.suggest import with_suggestions
from llava_remap.planning import Before, Layout, TakenBack, build_plan, take_back
from llava_remap.post_load.run import takes
from llava_remap.rewrite import (
    CompiledOperation,
    Operated,
    Program,
    Rewrite,
    Step,
    compile_all,
)
from llava_remap.routing import Routed, Routes
from llava_remap.rulefile import RuleFile, Taken, load_rule_file
from llava_remap.source.sources import open_source, short_name
from llava_remap.target_model import (
    Target,
    config_size,
    embedding_and_head,
    nearest_layout,
    wanted_parameters,
)

#: The layout of the output, as a plan calls it.
ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Reversal(Job):
    """A planned way back.

    Attributes:
        program: the way forward.
        classic: name in the checkpoint → classic name, for every name that is in a layout.
        taken: the tensors of the checkpoint.
    """

    program: Program
    classic: Mapping[str, str]
    taken: Sequence[Routed]

    def resumable(self, on_progress: OnProgress) -> Resumable | None:
        return None

    def check(
        self, weights: Sequence[Path], verify: Verify, on_progress: OnProgress, on_phase: OnPhase
    ) -> list[Problem]:
        """LR601 if the rule file doesn't lead a written tensor forward to its source, LR602 if the
        written files don't hold what the source gives.
        """
        found = _forward_problems(self, written_tensors(weights)) if verify != "none" else []
        return found + self.compared(weights, verify, on_progress, on_phase)

    def last_files(self, folder: Folder, verify: Verify) -> Mapping[str, bytes]:
        return {}


def plan_reverse(
    rules: str | Path,
    source: str | Path,
    output: str | Path | None = None,
    *,
    dry_run: bool = False,
    offline: bool = False,
) -> Reversal:
    """Plan the way back from headers alone; nothing is written.

    Args:
        source: the checkpoint, given like a source of `plan`.
        output: the folder to write. The default is the last part of the source's path with
            `-original`, in the current folder.
        rules, dry_run, offline: as in `plan`.

    Raises:
        RemapError: for a rule file, a source or a command line that can't be read. Names without a
            way back are in `plan.problems`.
    """
    file = load_rule_file(rules)
    first = file.first_source
    checkpoint = open_source(
        first, str(as_path("folder", source)), ("tensors", "config"), first=True, offline=offline
    )
    checkpoints = {first: checkpoint}
    folder = output_folder(
        output if output is not None else f"{short_name(str(source))}-{ORIGINAL}"
    )
    layout, classic = nearest_layout(checkpoint.catalog)
    problems = [
        *manifest_problems(checkpoints, dry_run=dry_run),
        *_config_problems(file, checkpoint),
    ]
    target = None
    if not problems:
        try:
            with file.placed("target", "class"):
                target = wanted_parameters(str(file.target.class_), checkpoint.config or {})
        except RemapError as error:
            problems += error.problems
    every = compile_all(file)
    known = dict.fromkeys((*classic.values(), *(target.shapes if target else ())))
    made = {name: found for name in known if (found := every.made_by(name))}
    back = {name: every.inverse(name) for name in known}
    # The original names are known now, so the `when` of rules can be decided, unless it depends on
    # the original's config.
    program = every.given([*filter(None, back.values()), *_taken_by(made, every)], None)
    back = {
        name: original
        for name, original in back.items()
        if original is None or program.rewrite(original).target == name
    }

    def routed(made: Mapping[str, Sequence[Operated]]) -> tuple[Routed, ...]:
        return tuple(
            _routed(first, checkpoint, name, classic, back, program, made)
            for name in checkpoint.catalog
        )

    taken, before, choices = routed(made), None, []
    if target is not None:
        operations = list(_taken_back(taken, program))
        renamed = {name for name, own in classic.items() if back.get(own) is not None}
        before = take_back(
            operations,
            renamed,
            {name for name, own in classic.items() if own in target.tied},
            _sizes(file, operations, checkpoint.config or {}),
        )
        unfit = {classic[name] for name in before.unfit}
        taken = routed({name: found for name, found in made.items() if name not in unfit})
        target = _renamed(target, back, before, taken)
        choices = _choice_notes(taken, renamed, before)
    routes = Routes(taken, (), (), ())
    plan = build_plan(
        file,
        program,
        checkpoints,
        routes,
        target,
        problems=problems or _name_problems(file, taken, classic, layout, target),
        notes=[*_notes(file, checkpoint, classic, target), *choices],
        layout=Layout(ORIGINAL),
        operations=before.operations if before else None,
        recognised=False,  # `_name_problems` reports unmapped names in the words of the way back
    )
    plan = with_suggestions(plan, routes, with_rules=False)
    job = Reversal(file, checkpoints, folder, plan, None, {}, program, classic, taken)
    nbytes = None if job.from_manifest else job.disk_nbytes
    room = output_problems(folder, nbytes, checkpoints, filled=dry_run)
    if dry_run:
        job = noted(job, output_notes(folder))
    return replace(job, plan=replace(plan, problems=(*plan.problems, *room)))


def _taken_by(made: Mapping[str, Sequence[Operated]], every: Program) -> Iterator[str]:
    """Original names of tensors that operations took; of each list the first."""
    for found in made.values():
        for rule, (_, fields, _) in found:
            for end in range(len(rule.operation.sources)):
                if (name := every.inverse_of_taken(rule.operation.took(end, fields))) is not None:
                    yield name


def _routed(
    source: str,
    checkpoint: Checkpoint,
    name: str,
    classic: Mapping[str, str],
    back: Mapping[str, str | None],
    program: Program,
    made: Mapping[str, Sequence[Operated]],
) -> Routed:
    """A tensor, its original name, and the rules that lead from there to its present name; or the
    operation that made it, if there is only one.
    """
    tensor, own = checkpoint.catalog[name], classic.get(name, "")
    if len(operations := made.get(own, ())) == 1:
        [operated] = operations
        step = Step(operated.rule.label, name, own)
        return Routed(source, tensor, Rewrite(name, own, None, own, (step,), operated))
    original = back.get(own)
    trace = program.rewrite(original).trace if original is not None else ()
    return Routed(source, tensor, Rewrite(name, original, None, own or name, trace))


def _taken_back(taken: Sequence[Routed], program: Program) -> Iterator[TakenBack]:
    """The operations that made tensors, each with those that belong together."""
    groups: dict[object, list[tuple[Operated, Routed]]] = defaultdict(list)
    for routed in taken:
        if (operated := routed.rewrite.operated) is not None:
            key = operated.rule.label, tuple(sorted(operated.taken.fields.items()))
            groups[key].append((operated, routed))
    for group in groups.values():
        (rule, (_, fields, _)), _ = group[0]
        made = {(each.taken.end, each.taken.number): routed for each, routed in group}
        yield TakenBack(rule, fields, dict(sorted(made.items())), _originals(rule, fields, program))


def _originals(
    rule: CompiledOperation, fields: Mapping[str, str], program: Program
) -> Callable[[int, int], str | None]:
    """Gives the original names of the tensors that an operation took. The program takes each of
    them to the operation again.
    """

    def original(end: int, number: int) -> str | None:
        name = program.inverse_of_taken(rule.operation.took(end, fields, number))
        operated = None if name is None else program.rewrite(name).operated
        if operated is None or operated.rule.label != rule.label:
            return None
        return name if operated.taken == Taken(end, fields, number) else None

    return original


def _sizes(
    rules: RuleFile, operations: Iterable[TakenBack], config: Mapping[str, Any]
) -> dict[str, int]:
    """The values of the config that operations need."""
    ids = [rule.id for rule in rules.text.tensors]
    sizes = {}
    for compiled in {each.rule.label: each.rule for each in operations}.values():
        with rules.placed("tensors", ids.index(compiled.id), "let"):
            for key in compiled.operation.sizes.values():
                sizes[key] = config_size(str(rules.target.class_), config, key)
    return sizes


def _renamed(
    target: Target, back: Mapping[str, str | None], before: Before, taken: Iterable[Routed]
) -> Target:
    """The target under original names. A parameter without a way back keeps its name, and is
    reported as missing. In place of what operations made stands what they took.
    """
    gone = {r.rewrite.prepared for r in taken if r.rewrite.operated is not None}
    names = {name: back.get(name) or name for name in target.shapes}
    shapes = {names[name]: shape for name, shape in target.shapes.items() if name not in gone}
    tied = {names[name]: names[other] for name, other in target.tied.items()}
    return replace(target, shapes={**shapes, **before.shapes}, tied=tied)


def _choice_notes(
    taken: Iterable[Routed], renamed: Collection[str], before: Before
) -> list[Problem]:
    """LR411 for tensors that an operation or a rename may have made: the operation counts."""
    chosen: dict[str, list[str]] = defaultdict(list)
    for r in taken:
        stuck = r.rewrite.prepared in before.operations.claimed
        if r.rewrite.operated is not None and r.tensor.name in renamed and not stuck:
            chosen[r.rewrite.operated.rule.label].append(r.tensor.name)
    return [
        Problem(
            "LR411",
            f"either `{label}` or a rename may have made {counted(len(names), 'tensor')}. They "
            "are reverted as new tensors of the operation.",
            "The rule file takes both forms to this checkpoint.",
            tuple(names),
        )
        for label, names in chosen.items()
    ]


def _config_problems(rules: RuleFile, checkpoint: Checkpoint) -> list[Problem]:
    """LR112 or LR311 unless the config says that the checkpoint is of the rule file's class."""
    config, wanted = checkpoint.config, rules.target.class_
    if config is None:
        return [
            Problem(
                "LR112",
                f"{checkpoint.location} has no config.json, so the model's class is unknown.",
                "Put the config.json that was saved with the weights beside them.",
            )
        ]
    said = [("architectures", config.get("architectures"), [wanted])]
    if any(takes(rule.use, "projector_form") for rule in rules.text.post_load):
        config = {key: value for key, value in config.items() if key != "projector_hidden_act"}
    for key, value in rules.target.config.items():
        const = list(value.const) if isinstance(value.const, tuple) else value.const
        if const is not None and (
            key == "model_type" or key in config
        ):  # versions differ in which keys they save
            said.append((key, config.get(key), const))
    if reasons := [
        f"its config says {key}: {found!r}, not {right!r}"
        for key, found, right in said
        if found != right
    ]:
        return [
            Problem(
                "LR311",
                f"{checkpoint.location} isn't what {rules.name} makes: {'; '.join(reasons)}.",
                "Give a checkpoint of that class, or the rule file that it was made with.",
            )
        ]
    if not isinstance(config.get("text_config"), dict):
        return [
            Problem(
                "LR112",
                f"the config.json in {checkpoint.location} has no `text_config`.",
                "Compare the config.json with the original one.",
            )
        ]
    return []


def _name_problems(
    rules: RuleFile,
    taken: Sequence[Routed],
    classic: Mapping[str, str],
    layout: str,
    target: Target | None,
) -> list[Problem]:
    """LR301 for names in no layout or without a way back, LR303 for names that the model doesn't
    have.
    """
    unknown = tuple(r.tensor.name for r in taken if r.tensor.name not in classic)
    stuck = tuple(
        r.tensor.name for r in taken if r.tensor.name in classic and r.rewrite.target is None
    )
    options = {
        option: rule.use
        for rule in rules.text.post_load
        for option in rule.with_.values()
        if isinstance(option, str)
    }
    made = tuple(name for name in stuck if classic[name] in options)
    stuck = tuple(name for name in stuck if name not in made)
    problems = []
    if made:
        makers = ", ".join(dict.fromkeys(f"`{options[classic[name]]}`" for name in made))
        cause = (
            f"{len(made)} of {len(taken)} names belong to tensors that {makers} made. They may "
            "have been trained since."
        )
        problems.append(
            Problem(
                "LR301",
                cause,
                "The original has no place for them. For a folder that `apply` wrote, "
                "`llava-remap revert DIR` restores the original from the folder's record.",
                made,
            )
        )
    if unknown:
        cause = (
            f"{len(unknown)} of {len(taken)} names are not in layout {layout}, the nearest "
            "that transformers saves."
        )
        problems.append(
            Problem(
                "LR301",
                cause,
                "Give a checkpoint that transformers saved or `apply` wrote.",
                unknown,
            )
        )
    if stuck:
        cause = (
            f"{len(stuck)} of {len(taken)} names have no way back by {rules.name}: no rule makes "
            "them, or rules lead back to several names."
        )
        asking = [
            rule.id
            for rule in (*rules.text.prepare, *rules.text.names)
            if rule.when is not None and rule.when.config
        ]
        if asking:
            cause += (
                f" Whether {', '.join(asking)} apply depends on the original's config, which is "
                "unknown."
            )
        problems.append(
            Problem(
                "LR301",
                cause,
                "Add a rule that makes these names, or add `reverse:` to a rule, or remove the "
                "tensors from the checkpoint.",
                stuck,
            )
        )
    more = tuple(
        r.tensor.name
        for r in taken
        if r.rewrite.target is not None
        and r.rewrite.operated is None
        and target
        and r.rewrite.target not in target.shapes
    )
    if more:
        cause = f"{len(more)} tensors that a {rules.target.class_} with this config doesn't have."
        problems.append(
            Problem("LR303", cause, "Check whether the config.json belongs to these weights.", more)
        )
    return problems


def _notes(
    rules: RuleFile, checkpoint: Checkpoint, classic: Mapping[str, str], wanted: Target | None
) -> list[Problem]:
    """LR410 for rows that stay; LR411 for files and tensors that the output lacks."""
    origin = rules.text.sources[rules.first_source].default
    cause = (
        "config.json, generation_config.json and the tokenizer files of the original can't be "
        "derived, and are not written."
    )
    drops = [
        f"`{rule.from_ or rule.match}` ({rule.drop})"
        for rule in (*rules.text.prepare, *rules.text.names)
        if rule.drop
    ]
    if drops:
        cause += f" Tensors that {rules.name} drops don't come back: {', '.join(drops)}."
    fix = f"Copy them from the original{f', {origin} for one' if origin else ''}."
    notes = [Problem("LR411", cause, fix, lacks=True)]
    named = {target: checkpoint.catalog[name] for name, target in classic.items()}
    embedding = named.get(wanted.embedding) if wanted else embedding_and_head(named)[0]
    if rules.text.tokens and embedding is not None and embedding.shape:
        tokens = ", ".join(f"`{token.text}`" for token in rules.text.tokens)
        cause = (
            f"all {embedding.shape[0]} rows of embed_tokens are kept, also those that were made "
            f"for {tokens} or as padding."
        )
        fix = (
            f"Set vocab_size to {embedding.shape[0]} in the config.json that you copy, and put "
            f"{tokens} with their ids into an added_tokens.json beside it. Without that file, "
            "nothing shows which token each row belongs to."
        )
        notes.append(Problem("LR410", cause, fix))
    return notes


def _led_to(done: Rewrite) -> str | None:
    """The parameter that a name becomes, or the operation that takes it."""
    return done.target if done.operated is None else done.operated.rule.label


def _forward_problems(job: Reversal, written: Catalog) -> list[Problem]:
    """LR601 if the rule file doesn't lead each written tensor to the name, dtype and shape of its
    source.
    """
    operated = {
        r.tensor.name: r.rewrite.operated.rule.label
        for r in job.taken
        if r.rewrite.operated is not None
    }
    wanted = {
        entry.target: (
            operated.get(origin.name, job.classic[origin.name]),
            entry.dtype,
            entry.shape,
        )
        for entry in job.plan.mapped
        for origin in entry.origins
    }
    have = {
        name: (_led_to(job.program.rewrite(name)), tensor.dtype, tensor.shape)
        for name, tensor in written.items()
    }
    if wrong := tuple(
        name for name in sorted(wanted.keys() | have.keys()) if wanted.get(name) != have.get(name)
    ):
        return [
            Problem(
                "LR601",
                f"the rules don't lead {len(wrong)} written tensors forward to their sources.",
                "Please report this with the rule file's name.",
                wrong,
            )
        ]
    return []
