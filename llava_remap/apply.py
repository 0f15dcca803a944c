"""The order of a whole job, once, for the command line and the Python API alike: rule file → program → plan → result."""

from __future__ import annotations

import difflib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llava_remap.checkpoint import Checkpoint, open_checkpoint
from llava_remap.derive import Derived, derive, source_configs
from llava_remap.errors import Problem, RemapError, refuse
from llava_remap.execute import fresh_folder, run_value_checks, whole_file, write_all, write_index, write_shards
from llava_remap.folder import Parts, make_files, read_generation_config
from llava_remap.identify import identify
from llava_remap.plan import Plan, Routes, build_plan, route
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import RuleFile, load_rule_file
from llava_remap.target import text_config
from llava_remap.verify import strict_load

#: Bytes beside the weights that an output folder needs at most: tokenizer files, in the main.
_SMALL_FILES_NBYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """A job that was planned: the plan, and what is needed to carry it out.

    Attributes:
        derived: None where a problem prevented it.
        small_files: everything in the output folder beside the weights, by name; empty where a problem prevented it.
    """

    rules: RuleFile
    checkpoints: Mapping[str, Checkpoint]
    output: Path
    plan: Plan
    derived: Derived | None
    small_files: Mapping[str, bytes]

    @property
    def from_manifest(self) -> bool:
        """Whether a source is a manifest, so that the job can be planned but has no values to check or copy."""
        return any(checkpoint.is_manifest for checkpoint in self.checkpoints.values())


@dataclass(frozen=True, slots=True)
class Result:
    """A job that was carried out: the files of the output folder, bytes of weights, seconds, and what is worth telling."""

    output: Path
    files: tuple[str, ...]
    nbytes: int
    seconds: float
    notes: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "files": list(self.files),
            "nbytes": self.nbytes,
            "seconds": round(self.seconds, 3),
            "notes": [note.to_json() for note in self.notes],
        }


def plan_job(rules: str | Path, sources: Sequence[str], output: str | Path | None = None, *, dry_run: bool = False) -> Job:
    """Plan a job from headers alone; nothing is written but to a scratch folder, which goes again.

    Args:
        rules: path of a rule file, or the name of a shipped one.
        sources: `SRC` or `NAME=SRC` each; a bare SRC is the rule file's first source.
        output: the folder to be written; by default the first source's last part with `-hf`, in the current folder.
        dry_run: whether the job is only to be planned; then a manifest will do for a source.

    Raises:
        RemapError: for a rule file, a source or a command line that can't be read. What doesn't map is in `plan.problems`.
    """
    file = load_rule_file(rules)
    _ = file.target
    program = compile_rules(file)
    paths = _source_paths(file, sources)
    checkpoints = {
        name: _open(paths[name], "tensors" in source.use, first=name == file.first_source)
        for name, source in file.text.sources.items()
        if name in paths
    }
    folder = Path(output) if output is not None else Path(checkpoints[file.first_source].path.resolve().name + "-hf")
    routes = route(file, program, checkpoints)
    configs = source_configs(file, checkpoints)
    problems = identify(file, routes.taken, checkpoints[file.first_source], text_config(configs))
    problems += _manifest_problems(checkpoints, dry_run)
    derived, recognised = None, not problems
    problems += _not_given(file, routes) if recognised else []
    if not problems:
        try:
            derived = derive(file, checkpoints, configs, routes)
        except RemapError as error:
            problems += error.problems
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            # Configs are other people's JSON: what isn't of the kind that it has to be shows when it is used.
            cause = f"a value in the sources' config.json is of a kind that can't be: {type(error).__name__}: {error}."
            problems.append(Problem("LR112", cause, "Hold the config.json against the original one."))
    small_files: Mapping[str, bytes] = {}
    if derived is not None and not derived.problems:
        try:
            small_files = _small_files(file, checkpoints, derived)
        except RemapError as error:
            problems += error.problems
    plan = build_plan(
        file,
        program,
        checkpoints,
        routes,
        derived.target if derived else None,
        derived.post_load if derived else (),
        (*problems, *(derived.problems if derived else ())),
        derived.notes if derived else (),
        recognised=recognised,
    )
    if room := _output_problems(folder, plan, checkpoints):
        plan = replace(plan, problems=(*plan.problems, *room))
    return Job(file, checkpoints, folder, plan, derived, small_files)


def check_values(job: Job) -> Job:
    """Run the plan's value checks (they read tensors); what they find is in the plan of the job that comes back."""
    if job.plan.values_checked or not job.plan.complete or job.from_manifest:
        return job
    problems, notes = run_value_checks(job.plan, job.checkpoints)
    plan = replace(job.plan, problems=(*job.plan.problems, *problems), notes=(*job.plan.notes, *notes), values_checked=True)
    return replace(job, plan=plan)


def apply_job(job: Job, on_progress: Callable[[int], None] = lambda nbytes: None) -> Result:
    """Carry a planned job out, or leave no trace.

    Value checks come first, then the weights, a strict load by the installed transformers, the small files, and last the index.
    Whatever fails or interrupts, everything that this call wrote is removed.

    Raises:
        RemapError: with the plan's problems, or what was found since.
    """
    started = time.monotonic()
    job = check_values(job)
    if job.derived is None or not job.plan.complete:
        raise RemapError(job.plan.problems)
    output, config = job.output, job.derived.config.config
    with fresh_folder(output) as written:
        write_shards(job.plan, job.checkpoints, output, written, on_progress)
        if found := strict_load(written, job.plan.target_class, config):
            raise RemapError(found)
        for name, content in sorted(job.small_files.items()):
            with whole_file(output / name, written) as file:
                write_all(file, content)
        write_index(job.plan, output, written)
    files = tuple(sorted(path.name for path in written))
    return Result(output, files, job.plan.nbytes_write, time.monotonic() - started, job.plan.notes)


def apply(rules: str | Path, sources: Sequence[str], output: str | Path | None = None) -> Result:
    """Plan a job and carry it out: `plan_job`, then `apply_job`."""
    return apply_job(plan_job(rules, sources, output))


def _source_paths(rules: RuleFile, given: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if not equals or (name not in rules.text.sources and _exists(Path(text))):
            name, rest = rules.first_source, text
        if name not in rules.text.sources:
            near = difflib.get_close_matches(name, rules.text.sources, 1)
            raise refuse(
                "LR211",
                f"{rules.name} has no source `{name}`; it has {', '.join(rules.text.sources)}.",
                f"Did you mean `{near[0]}={rest}`?" if near else "Write --source NAME=SRC.",
            )
        if name in paths:
            raise refuse("LR211", f"source `{name}` is given twice: {paths[name]} and {rest}.", "Give it once.")
        if not rest:
            raise refuse("LR211", f"source `{name}` is given without a path.", f"Write --source {name}=DIR.")
        try:
            paths[name] = Path(rest).expanduser()
        except RuntimeError as error:  # a home folder that isn't known
            raise refuse("LR211", f"source `{name}`: {error}", "Write the path out.") from None
    if rules.first_source not in paths:
        default = rules.text.sources[rules.first_source].default
        raise refuse(
            "LR211",
            f"no checkpoint is given for source `{rules.first_source}`.",
            f"Download it ({default}) and give its folder: --source DIR." if default else "Give it: --source DIR.",
        )
    return paths


def _open(path: Path, weights: bool, *, first: bool) -> Checkpoint:
    """Open a source; a further one may be a folder with a config alone, for a part that the first source has already."""
    try:
        return open_checkpoint(path, weights=weights)
    except RemapError as error:
        if first or error.problems[0].code != "LR100" or not (path / "config.json").is_file():
            raise
        return open_checkpoint(path, weights=False)


def _manifest_problems(checkpoints: Mapping[str, Checkpoint], dry_run: bool) -> list[Problem]:
    manifests = [checkpoint.path for checkpoint in checkpoints.values() if checkpoint.is_manifest]
    if dry_run or not manifests:
        return []
    return [
        Problem(
            "LR111",
            f"{', '.join(map(str, manifests))}: names and shapes only, there is nothing to convert.",
            "Give the checkpoint itself, or add --dry-run to plan from the manifest.",
        )
    ]


def _small_files(rules: RuleFile, checkpoints: Mapping[str, Checkpoint], derived: Derived) -> dict[str, bytes]:
    """Config, tokenizer, processor and chat template, made and tried in a scratch folder before a byte of weights moves."""
    folders = [checkpoint.folder for checkpoint in checkpoints.values() if checkpoint.folder is not None]
    generation = read_generation_config(folders)
    parts = Parts(rules, derived.config, derived.tokens, derived.vocabulary, derived.image_processor, generation)
    return make_files(parts)


def _not_given(rules: RuleFile, routes: Routes) -> list[Problem]:
    problems = []
    for name in routes.not_given:
        default = rules.text.sources[name].default
        absent = rules.text.sources[name].used_if_absent
        why = f", and `{rules.first_source}` has no `{absent}`" if absent else ""
        problems.append(
            Problem(
                "LR302",
                f"source `{name}` is not given{why}.",
                f"Give it: --source {name}=DIR" + (f" (the stock one is {default})." if default else "."),
            )
        )
    return problems


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _output_problems(output: Path, plan: Plan, checkpoints: Mapping[str, Checkpoint]) -> list[Problem]:
    """LR503 for an output that isn't an empty folder, LR502 for a disk without room, LR508 where it can't or mustn't be."""
    another = "Give another --output."
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            return [Problem("LR503", f"{output} is there and isn't an empty folder.", "Give another --output, or empty it.")]
        parent = next(path for path in (output, *output.absolute().parents) if path.exists())
        free = shutil.disk_usage(parent).free
    except (OSError, ValueError) as error:
        return [Problem("LR508", f"{output}: {getattr(error, 'strerror', None) or error}.", another)]
    for name, checkpoint in checkpoints.items():
        if checkpoint.path.is_dir() and output.resolve().is_relative_to(checkpoint.path.resolve()):
            return [Problem("LR508", f"{output} is inside source `{name}`, and sources are never written to.", another)]
    if not parent.is_dir():
        return [Problem("LR508", f"{parent} is a file, so there can be no folder {output}.", another)]
    if not os.access(parent, os.W_OK):
        return [Problem("LR508", f"nothing can be written in {parent}.", another)]
    needed = plan.nbytes_write + _SMALL_FILES_NBYTES
    if needed > free:
        facts = f"{needed:,} bytes are needed in {parent}, {free:,} are free."
        return [Problem("LR502", facts, "Free some, or give another --output.")]
    return []
