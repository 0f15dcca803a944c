"""How fast, with how much CPU and in how much memory a checkpoint is converted, beside `cp`, beside
the classic way and beside transformers itself.

    python -m tools.bench.bench [--size 1GB] [--rounds 3] [--forms safetensors,bin] [--json FILE]
    [--scratch DIR]

Every way is a process of its own, from its start to its exit, so imports count. In each round all
ways run once, in every second round in reverse order. Before each run the last output is removed,
the disk is synced and the source is read (page cache warm) or dropped from the page cache (cold),
all outside of the timing; cold is the default where source and output don't fit into memory
together. `apply` returns when its files are on the disk, `cp` and all others before that; so one
way is `cp` followed by `sync` of what it wrote.

What `apply` has learnt of the installed libraries it finds in a cache that one run filled which
isn't counted; one way begins with an empty one. A checkpoint larger than 2 GB is preceded by one of
1 GB, so that growth can be told. Tensor operations are measured beside `cp` on checkpoints that
need them. All ways are measured on the first form, on others the most
important ones.

Wall time varies by a factor of two on some machines: look at the ranges, and trust CPU and memory
more. There are no pass marks here; the table of goals says what was met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.bench.copying import make_file, measure_copying
from tools.bench.measure import CommandError, cached_share, evict, machine, run, warm
from tools.bench.operations import KINDS, Kind
from tools.bench.options import rounds_of, say, scratch_folder, size_of
from tools.bench.results import (
    APPLY,
    CLASSIC,
    CLASSIC_RENAME,
    COPY,
    DRY_7B,
    DRY_72B,
    DRY_110B,
    EMPTY,
    FIRST,
    HELP,
    IMPORTS,
    LINT,
    LINT_MANY,
    LIST,
    LOADED,
    OPERATED,
    REFUSED,
    RENAME,
    SYNC,
    Converted,
    Results,
    Rounds,
)
from tools.bench.synthetic import (
    FORMS,
    FULL_TOKENIZER,
    MANIFEST,
    MANIFEST_72B,
    SPARE_TOKENIZER,
    TOWER_CONFIG,
    make_manifest_110b,
    make_manifest_of_experts,
    make_rules,
    shapes_for,
    total_nbytes,
)

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "safetensors", "llava-remap")
#: One checkpoint and one output are there at a time; the rest is for blocks that the file system
#: frees late.
DISK_FACTOR = 2.5
#: Short commands are over in a second, so they can run more often.
SHORT_ROUNDS = 7
SMALL = 10**9
#: What a strict load needs of them.
LOADER = "from transformers import LlavaConfig, LlavaForConditionalGeneration"
EMPTY_TYPER = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
#: What is measured on every form; the rest on the first one only.
ON_EVERY_FORM = (COPY, RENAME, APPLY, CLASSIC)
#: Those whose tensors must be equal in name, dtype and shape.
SAME = ((RENAME, CLASSIC_RENAME), (APPLY, CLASSIC), (APPLY, FIRST))

Command = tuple[str, ...]
#: dtype and shape by name.
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def main() -> None:
    arguments = _arguments()
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that the scratch folder goes then, too
    sizes = [arguments.size] if arguments.size <= 2 * SMALL else [SMALL, arguments.size]
    try:
        remap = _console_script()
        with scratch_folder(
            arguments.scratch, int(total_nbytes(shapes_for(arguments.size)) * DISK_FACTOR)
        ) as scratch:
            os.environ["LLAVA_REMAP_CACHE"] = str(scratch / "cache")
            results = Results(machine(scratch, PACKAGES))
            # First, as the kernel writes back what was copied long after that has ended.
            results.short = measure_short(remap, scratch, max(arguments.rounds, SHORT_ROUNDS))
            for size in sizes:
                for form in arguments.forms:
                    whole = form == arguments.forms[0]
                    entry = measure_form(
                        remap,
                        scratch,
                        size,
                        form,
                        arguments.rounds,
                        arguments.page_cache,
                        whole=whole,
                    )
                    results.converted.append(entry)
                    results.floor = run(
                        ["true"]
                    ).peak_nbytes  # of this process's own peak, which only grows
                    results.write(arguments.json)
            for kind in KINDS:
                results.operations.append(
                    measure_operation(
                        remap, scratch, sizes[-1], kind, arguments.rounds, arguments.page_cache
                    )
                )
                results.write(arguments.json)
            results.copied_nbytes = SMALL
            make_file(scratch / "source", SMALL)
            results.copying = measure_copying(
                scratch / "source", scratch / "target", arguments.rounds, say
            )
            results.floor = run(["true"]).peak_nbytes
            results.write(arguments.json)
    except CommandError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        print("bench: interrupted; the scratch folder is removed.", file=sys.stderr)
        sys.exit(130)
    from tools.bench.tables import print_tables, tables

    print("\n".join(results.machine))
    print_tables(tables(results))
    print(
        f"{arguments.json} has all figures; python -m tools.bench.readme {arguments.json} writes "
        "them into docs/performance.md"
    )


def measure_form(
    remap: str, scratch: Path, nbytes: int, form: str, rounds: int, page_cache: str, *, whole: bool
) -> Converted:
    """Make a checkpoint, convert it in every way in every round, remove it.

    Args:
        page_cache: `warm`, `cold`, or `auto` for cold where source and output don't fit into
            memory.
        whole: whether all ways are measured, or those of `ON_EVERY_FORM`.
    """
    source, output = scratch / f"llava-{form}", scratch / "output"
    shapes = shapes_for(nbytes)
    total = total_nbytes(shapes)
    if page_cache == "auto":
        page_cache = _page_cache(total)
    what = f"{total / 1e9:.1f} GB, {form}, {page_cache}"
    say(f"{what}: making the checkpoint")
    # In a process of its own: memory that this one ever had would count as its children's (see
    # measure.py).
    run([sys.executable, str(HERE / "synthetic.py"), str(source), str(nbytes), form])
    files = [path for path in source.rglob("*") if path.is_file()]
    ways = _ways(remap, scratch, source, output)
    if not whole:
        ways = {name: ways[name] for name in ON_EVERY_FORM}
    say(f"{what}: filling the cache of answers")
    for name in (RENAME, APPLY):
        run(ways[name])
        if name == RENAME:
            shutil.copy(output / "config.json", scratch / "config.json")  # LOADED takes it
        shutil.rmtree(output)
    results, most_cached = _all_rounds(ways, files, source, output, rounds, page_cache, what)
    shutil.rmtree(source)
    return Converted(total, len(shapes), form, page_cache, most_cached, results)


def measure_operation(
    remap: str, scratch: Path, nbytes: int, kind: Kind, rounds: int, page_cache: str
) -> Converted:
    """Make a checkpoint whose matrices need an operation, copy and convert it in every round,
    remove it. Arguments as for `measure_form`.
    """
    source, output, rules = scratch / "operated", scratch / "output", scratch / "rules.yaml"
    shapes = kind.shapes(shapes_for(nbytes))
    total = total_nbytes(shapes)
    if page_cache == "auto":
        page_cache = _page_cache(total)
    what = f"{total / 1e9:.1f} GB, {kind.name}, {page_cache}"
    say(f"{what}: making the checkpoint")
    run(
        [
            sys.executable,
            str(HERE / "synthetic.py"),
            str(source),
            str(nbytes),
            FORMS[0],
            kind.name,
        ]
    )
    rules.write_text(kind.rules, encoding="utf-8")
    files = [path for path in source.rglob("*") if path.is_file()]
    operated = [remap, "apply", str(rules), "--verify", "none", "--output", str(output)]
    for name, path in (
        ("model", source),
        ("vision_tower", source / TOWER_CONFIG),
        ("language_model", source / SPARE_TOKENIZER),
    ):
        operated += ["--source", f"{name}={path}"]
    ways: dict[str, Command] = {
        COPY: ("cp", "-r", str(source), str(output)),
        OPERATED: tuple(operated),
    }
    run(ways[OPERATED])  # fills the cache of answers
    shutil.rmtree(output)
    results, most_cached = _all_rounds(ways, files, source, output, rounds, page_cache, what)
    shutil.rmtree(source)
    return Converted(total, len(shapes), kind.name, page_cache, most_cached, results)


def _page_cache(total: int) -> str:
    """The state in which a checkpoint of so many bytes is measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return "warm" if 2 * total < memory else "cold"


def _all_rounds(
    ways: dict[str, Command],
    files: list[Path],
    source: Path,
    output: Path,
    rounds: int,
    page_cache: str,
    what: str,
) -> tuple[Rounds, float]:
    """Run every way in every round.

    Returns:
        What each took, and the largest share of the source that stayed in the page cache all the
        same, where it was dropped from it.
    """
    results: Rounds = {name: [] for name in ways}
    converted: dict[str, Tensors] = {}
    most_cached = 0.0
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            shutil.rmtree(output.parent / "empty", ignore_errors=True)
            os.sync()
            if page_cache == "warm":
                warm(files)
            else:
                evict(files)
                most_cached = max(most_cached, cached_share(files))
            results[name].append(run(ways[name]))
            say(f"{what}: round {number + 1}, {name}: {results[name][-1].wall:.2f} s")
            if name in (COPY, SYNC):
                _check_copy(source, output)
            else:
                converted[name] = _tensors(output)
            shutil.rmtree(output)
        _check_conversions(converted)
    return results, most_cached


def _ways(remap: str, scratch: Path, source: Path, output: Path) -> dict[str, Command]:
    """The command line of each way.

    A rename and no more is the same checkpoint with a tokenizer that leaves rows free for the new
    tokens, and without a check of what was written.
    """
    mapping = scratch / "mapping.json"
    with mapping.open("w") as file:
        run(
            [
                remap,
                "rules",
                "explain",
                "llava-v1.5",
                "--as",
                "key-mapping",
                "--source",
                str(source),
            ],
            file,
        )
    here, there, python = str(source), str(output), sys.executable
    common = (
        remap,
        "apply",
        "llava-v1.5",
        "--source",
        here,
        "--source",
        f"vision_tower={source / TOWER_CONFIG}",
    )
    full, spare = (
        ("--source", f"language_model={source / name}")
        for name in (FULL_TOKENIZER, SPARE_TOKENIZER)
    )
    apply = (*common, *full, "--output", there)
    return {
        COPY: ("cp", "-r", here, there),
        SYNC: ("sh", "-c", 'cp -r "$0" "$1" && find "$1" -type f -exec sync {} +', here, there),
        RENAME: (*common, *spare, "--verify", "none", "--output", there),
        APPLY: apply,
        FIRST: ("env", f"LLAVA_REMAP_CACHE={scratch / 'empty'}", *apply),
        CLASSIC_RENAME: (python, str(HERE / "classic.py"), here, there, "--rename-only"),
        CLASSIC: (python, str(HERE / "classic.py"), here, there),
        LOADED: (
            python,
            str(HERE / "key_mapping.py"),
            here,
            str(scratch / "config.json"),
            str(mapping),
            there,
        ),
    }


def measure_short(remap: str, scratch: Path, rounds: int) -> Rounds:
    """Commands that move no weights. A first round, in which caches fill, is not counted."""
    manifest = scratch / "llava-next-qwen1.5-110b.json"
    make_manifest_110b(manifest)
    experts, rules = scratch / "experts.json", scratch / "rules.yaml"
    refused = ("sh", "-c", '"$@"; test $? -ne 0', "refused")  # which is what is measured
    make_manifest_of_experts(experts)
    make_rules(rules)
    ways: dict[str, Command] = {
        EMPTY: (sys.executable, "-c", EMPTY_TYPER, "--help"),
        HELP: (remap, "--help"),
        LINT: (remap, "rules", "lint", "llava-v1.5"),
        LIST: (remap, "rules", "list"),
        DRY_7B: (remap, "apply", "llava-v1.5", "--source", str(MANIFEST), "--dry-run"),
        DRY_72B: (remap, "apply", "llava-next", "--source", str(MANIFEST_72B), "--dry-run"),
        DRY_110B: (remap, "apply", "llava-next", "--source", str(manifest), "--dry-run"),
        REFUSED: (*refused, remap, "apply", "llava-v1.5", "--source", str(experts), "--dry-run"),
        LINT_MANY: (*refused, remap, "rules", "lint", str(rules)),
        IMPORTS: (sys.executable, "-c", LOADER),
    }
    results: Rounds = {name: [] for name in ways}
    say("start-up and dry runs")
    for number in range(rounds + 1):
        for name in list(ways) if number % 2 == 0 else reversed(ways):
            usage = run(ways[name])
            if number:
                results[name].append(usage)
    return results


def _tensors(output: Path) -> Tensors:
    """All tensors in a folder's safetensors files; each file must be as long as its header says."""
    found: Tensors = {}
    for path in sorted(output.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in header.values())
        if path.stat().st_size != 8 + length + end:
            raise CommandError(
                f"{path.name} has {path.stat().st_size:,} bytes, its header says "
                f"{8 + length + end:,}"
            )
        found.update(
            {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        )
    if not found:
        raise CommandError(f"no tensors were written into {output}")
    return found


def _check_conversions(converted: dict[str, Tensors]) -> None:
    """Ways are comparable if they wrote the same tensors; transformers' own one has other names,
    and one dtype.
    """
    for one, other in SAME:
        if one in converted and other in converted and converted[one] != converted[other]:
            raise CommandError(
                f"{one} and {other} wrote tensors of other names, dtypes or shapes: they are not "
                "comparable"
            )
    if LOADED in converted:
        shapes = [
            Counter(shape for _, shape in converted[name].values()) for name in (LOADED, RENAME)
        ]
        if shapes[0] != shapes[1]:
            raise CommandError(
                f"{LOADED} wrote tensors of other shapes than apply: they are not comparable"
            )


def _check_copy(source: Path, output: Path) -> None:
    sizes = [
        {
            path.relative_to(folder): path.stat().st_size
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (source, output)
    ]
    if sizes[0] != sizes[1]:
        raise CommandError(f"cp wrote {sizes[1]}, the source has {sizes[0]}")


def _console_script() -> str:
    """The `llava-remap` of the environment that this runs in, else the one on the path."""
    beside = Path(sys.executable).with_name("llava-remap")
    found = str(beside) if beside.exists() else shutil.which("llava-remap")
    if found is None:
        raise CommandError("llava-remap is not installed here: make install")
    return found


def _forms(text: str) -> list[str]:
    forms = text.split(",")
    if not set(forms) <= set(FORMS) or len(set(forms)) < len(forms):
        raise argparse.ArgumentTypeError(f"{text!r}: write {','.join(FORMS)} or one of them")
    return forms


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure llava-remap beside cp, the classic way and transformers itself."
    )
    parser.add_argument(
        "--size",
        type=size_of,
        default="1GB",
        help="of the checkpoint: 1GB to 14GB, or 7b for the whole (default: 1GB)",
    )
    parser.add_argument(
        "--rounds", type=rounds_of, default=3, help="how often every way is run (default: 3)"
    )
    parser.add_argument("--forms", type=_forms, default=",".join(FORMS), metavar="FORM[,FORM]",
                        help=f"of the checkpoint (default: {','.join(FORMS)}); all ways are "
                             "measured on the first")  # fmt: skip
    parser.add_argument("--page-cache", choices=("auto", "warm", "cold"), default="auto",
                        help="what it has of the source; auto: warm if source and output fit into "
                             "memory (default)")  # fmt: skip
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("build/bench.json"),
        metavar="FILE",
        help="where the figures are written (default: build/bench.json)",
    )
    parser.add_argument("--scratch", type=Path, default=Path("build"), metavar="DIR",
                        help="where 2.5 times the size can be written; all is removed at the end "
                             "(default: build)")  # fmt: skip
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
