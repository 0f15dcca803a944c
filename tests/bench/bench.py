"""How fast, with how much CPU and in how much memory a checkpoint is converted, beside `cp` and beside the classic way.

    python tests/bench/bench.py [--size 1GB] [--rounds 3] [--scratch DIR]

Every way is a process of its own, from its start to its exit, so imports count. In each round all ways run once, in every
second round in reverse order. Before each run the last output is removed and the disk is synced, outside of the timing. The
page cache is left as it is: warm while source and output fit into memory. `apply` returns when its files are on the disk, `cp`
and the classic way before that; so one way is `cp` followed by `sync` of what it wrote.

Wall time varies by a factor of two on some machines: look at the ranges, and trust CPU and memory more. There are no pass marks
here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import sync
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it is run as a file

from tests.bench.measure import CommandError, Usage, machine, run
from tests.bench.synthetic import FORMS, MANIFEST, TOWER_CONFIG, shapes_for, total_nbytes

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "safetensors", "llava-remap")
#: One checkpoint and one output are there at a time; the rest is for blocks that the file system frees late.
DISK_FACTOR = 2.5
#: Short commands are over in a second, so they can run more often.
SHORT_ROUNDS = 5
MIB = 1 << 20
#: Columns that the tables need; a narrower terminal wraps them, a pipe gets them whole.
TABLE_WIDTH = 120
EMPTY_TYPER = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
COPY, APPLY, CLASSIC = "cp -r", "llava-remap apply", "classic way"
RULES_COMMANDS = (
    ("lint", "llava-v1.5"),
    ("test", "llava-v1.5"),
    ("explain", "llava-v1.5", "model.layers.0.mlp.up_proj.weight"),
)
EMPTY = "an empty typer app, --help"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the job: its name in the table and its command line."""

    name: str
    command: tuple[str, ...]


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the scratch folder goes then, too
    shapes = shapes_for(arguments.size)
    nbytes = total_nbytes(shapes)
    tables: list[tuple[str, dict[str, list[Usage]], str]] = []
    try:
        remap = _console_script()
        with scratch_folder(arguments.scratch, int(nbytes * DISK_FACTOR)) as scratch:
            print("\n".join(machine(scratch, PACKAGES)))
            print(f"size      {nbytes / 1e9:.2f} GB in {len(shapes)} tensors, {arguments.rounds} rounds")
            floor = run(["true"]).peak_nbytes
            print(f"memory    {floor / MIB:.0f} MiB is the least that the kernel reports for a child of this process")
            sys.stdout.flush()
            for form in FORMS:
                results = measure_form(remap, scratch, arguments.size, form, arguments.rounds)
                tables.append((f"{nbytes / 1e9:.2f} GB, .{form}", results, COPY))
            results = measure_short(remap, max(arguments.rounds, SHORT_ROUNDS))
            tables.append(("start-up, and a plan for 7B from headers", results, EMPTY))
    except CommandError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        print("bench: interrupted; the scratch folder is removed.", file=sys.stderr)
        sys.exit(130)
    for title, results, base in tables:
        print_table(title, results, base, floor)


def measure_form(remap: str, scratch: Path, nbytes: int, form: str, rounds: int) -> dict[str, list[Usage]]:
    """Make a checkpoint, convert it in every way in every round, remove it. Results by way, in the order of rounds."""
    source, output = scratch / f"llava-{form}", scratch / "output"
    _say(f"{form}: making the checkpoint")
    # In a process of its own: memory that this one ever had would count as its children's (see measure.py).
    run([sys.executable, str(HERE / "synthetic.py"), str(source), str(nbytes), form])
    tower = ("--source", f"vision_tower={source / TOWER_CONFIG}")
    ways = (
        Way(COPY, ("cp", "-r", str(source), str(output))),
        Way(f"{COPY}, then sync", ("sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', str(source), str(output))),
        Way(APPLY, (remap, "apply", "llava-v1.5", "--source", str(source), *tower, "--output", str(output))),
        Way(CLASSIC, (sys.executable, str(HERE / "classic.py"), str(source), str(output))),
    )
    results: dict[str, list[Usage]] = {way.name: [] for way in ways}
    converted: dict[str, object] = {}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            sync()
            results[way.name].append(run(way.command))
            _say(f"{form}: round {number + 1}, {way.name}: {results[way.name][-1].wall:.2f} s")
            if way.name in (APPLY, CLASSIC):
                converted[way.name] = _tensors(output)
            else:
                _check_copy(source, output)
            shutil.rmtree(output)
        if converted[APPLY] != converted[CLASSIC]:
            raise CommandError(
                "apply and the classic way wrote tensors of other names, dtypes or shapes: they are not comparable"
            )
    shutil.rmtree(source)
    return results


def measure_short(remap: str, rounds: int) -> dict[str, list[Usage]]:
    """Commands that move no weights. A first round, in which caches fill, is not counted."""
    ways = (
        Way(EMPTY, (sys.executable, "-c", EMPTY_TYPER, "--help")),
        Way("llava-remap --help", (remap, "--help")),
        *(Way(f"rules {what[0]}", (remap, "rules", *what)) for what in RULES_COMMANDS),
        Way("apply --dry-run, 7B's manifest", (remap, "apply", "llava-v1.5", "--source", str(MANIFEST), "--dry-run")),
    )
    results: dict[str, list[Usage]] = {way.name: [] for way in ways}
    _say("start-up and dry run")
    for number in range(rounds + 1):
        for way in ways if number % 2 == 0 else reversed(ways):
            usage = run(way.command)
            if number:
                results[way.name].append(usage)
    return results


def print_table(title: str, results: dict[str, list[Usage]], base: str, floor: int) -> None:
    """Medians over the rounds.

    Args:
        base: the way that ratios of wall time are to, each within its own round.
        floor: bytes of peak memory that the kernel reports for a child that does nothing.
    """
    from rich.console import Console  # after the last measurement: see measure.py
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("way", no_wrap=True)
    for column in ("wall s", "min–max", f"÷ {base.partition(',')[0]}", "CPU s (user + sys)", "peak MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, usages in results.items():
        walls = [usage.wall for usage in usages]
        ratio = median(usage.wall / other.wall for usage, other in zip(usages, results[base], strict=True))
        user, system = median(usage.user for usage in usages), median(usage.system for usage in usages)
        peak = median(usage.peak_nbytes for usage in usages)
        cpu = median(usage.user + usage.system for usage in usages)
        table.add_row(
            name, f"{median(walls):.2f}", f"{min(walls):.2f}–{max(walls):.2f}", f"{ratio:.2f}",
            f"{cpu:.2f} ({user:.2f} + {system:.2f})", f"{'≤ ' if peak < floor + MIB else ''}{peak / MIB:,.0f}",
        )  # fmt: skip
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)


@contextlib.contextmanager
def scratch_folder(parent: Path, nbytes: int) -> Iterator[Path]:
    """A new folder in `parent` with room for `nbytes`, removed at the end however it comes; `parent` too if it was made here."""
    made = not parent.exists()
    parent.mkdir(parents=True, exist_ok=True)
    try:
        free = shutil.disk_usage(parent).free
        if free < nbytes:
            raise CommandError(
                f"{nbytes / 1e9:.1f} GB are needed in {parent}, {free / 1e9:.1f} GB are free; give another --scratch"
            )
        with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
            yield Path(name)
    finally:
        if made and not any(parent.iterdir()):
            parent.rmdir()


def _tensors(output: Path) -> dict[str, object]:
    """Name to dtype and shape of all tensors in a folder's safetensors files; each must be as long as its header says."""
    found: dict[str, object] = {}
    for path in sorted(output.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max(entry["data_offsets"][1] for entry in header.values())
        if path.stat().st_size != 8 + length + end:
            raise CommandError(f"{path.name} has {path.stat().st_size:,} bytes, its header says {8 + length + end:,}")
        found.update({name: (entry["dtype"], entry["shape"]) for name, entry in header.items()})
    if not found:
        raise CommandError(f"no tensors were written into {output}")
    return found


def _check_copy(source: Path, output: Path) -> None:
    sizes = [{path.name: path.stat().st_size for path in folder.iterdir()} for folder in (source, output)]
    if sizes[0] != sizes[1]:
        raise CommandError(f"cp wrote {sizes[1]}, the source has {sizes[0]}")


def _console_script() -> str:
    """The `llava-remap` of the environment that this runs in, else the one on the path."""
    beside = Path(sys.executable).with_name("llava-remap")
    found = str(beside) if beside.exists() else shutil.which("llava-remap")
    if found is None:
        raise CommandError("llava-remap is not installed here: make install")
    return found


def _size(text: str) -> int:
    """Bytes for `500MB`, `2.5GB` (decimal units) or `7b` (the whole model)."""
    if text.lower() == "7b":
        return total_nbytes(shapes_for(1 << 62))
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])B", text, re.IGNORECASE)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1GB, 2.5GB or 7b")
    return int(float(found[1]) * {"M": 10**6, "G": 10**9}[found[2].upper()])


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; write 1 or more")
    return int(text)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure llava-remap beside cp and beside the classic way.")
    parser.add_argument(
        "--size", type=_size, default="1GB", help="of the checkpoint: 1GB to 14GB, or 7b for the whole (default: 1GB)"
    )
    parser.add_argument("--rounds", type=_rounds, default=3, help="how often every way is run (default: 3)")
    parser.add_argument("--scratch", type=Path, default=Path("build"), metavar="DIR",
                        help="where 2.5 times the size can be written; all is removed at the end (default: build)")  # fmt: skip
    return parser.parse_args(given)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
