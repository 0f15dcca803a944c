"""Memory and disk: what is predicted is enough, and not much more than that; where the machine
has less, nothing is begun.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava_remap.core import limits
from llava_remap.core.problem import RemapError
from llava_remap.jobs import resources
from llava_remap.jobs.apply import apply, plan
from llava_remap.jobs.resources import Predicted, memory_problems, peak_nbytes
from llava_remap.jobs.reverse import plan_reverse
from tests.conftest import CLIP, MANIFESTS, RELEASED, Run

SOURCES = ("--source", str(RELEASED / "sharded"), "--source", f"vision_tower={CLIP}")
MIB = 1 << 20

#: Starts a command, and tells what the kernel says of it. It is small itself: a child's peak is
#: never below its parent's size at the moment of the start.
LAUNCHER = """
import json, os, sys
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as file:
    unit = 1 if sys.platform == "darwin" else 1024
    json.dump([os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit], file)
"""


def measured(*arguments: object) -> tuple[dict[str, Any], int]:
    """The JSON of a job in a process of its own, and the peak of its memory by the kernel."""
    program = "from llava_remap.cli import main; main()"
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        LAUNCHER,
        "usage",
        "-c",
        program,
        *map(str, arguments),
        "--format",
        "json",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    code, peak = json.loads(Path("usage").read_text())
    assert code == 0, ran.stderr + ran.stdout
    return json.loads(ran.stdout), peak


#: Stands for the folder that the fixture made.
CONVERTED = "converted"
JOBS: Mapping[str, Sequence[object]] = {
    "as it comes": ("llava-v1.5", *SOURCES),
    "nothing checked": ("llava-v1.5", *SOURCES, "--verify", "none"),
    "everything compared": ("llava-v1.5", *SOURCES, "--verify", "full"),
    "cast": ("llava-v1.5", *SOURCES, "--dtype", "bfloat16", "--verify", "none"),
    "only renamed": (CONVERTED, "--rules", "llava-v1.5", "--verify", "none"),
}


@pytest.fixture(autouse=True, scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted folder. The libraries' answers are in the cache from then on, so that a plan
    knows least of what is to come.
    """
    folder = tmp_path_factory.mktemp("converted") / "out"
    apply("llava-v1.5", [RELEASED / "sharded", f"vision_tower={CLIP}"], folder)
    plan("llava-v1.5", [RELEASED / "sharded", f"vision_tower={CLIP}"], "out", dtype="bfloat16")
    plan_reverse("llava-v1.5", folder)
    return folder


@pytest.mark.parametrize("job", JOBS)
def test_what_is_predicted_is_enough_and_not_much_more(job: str, converted: Path) -> None:
    told, peak = measured(
        "revert" if CONVERTED in JOBS[job] else "apply",
        *(converted if word == CONVERTED else word for word in JOBS[job]),
        "--output",
        "out",
    )
    predicted, used = told["predicted"], told["result"]
    assert peak <= predicted["memory"] <= 1.5 * peak
    assert used["memory"] == pytest.approx(peak, rel=0.05), (
        "what the report says is what the kernel says"
    )
    assert predicted["memory"] == sum(predicted["memory_parts"].values())
    disk = sum(path.stat().st_blocks * 512 for path in Path("out").iterdir())
    assert used["disk"] == disk <= predicted["disk"] <= 1.5 * disk


def test_a_dry_run_predicts_and_takes_nothing(run: Run) -> None:
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        MANIFESTS / "llava-v1.5-7b.json",
        "--dry-run",
        "--format",
        "json",
    )
    assert "result" not in ran.json
    assert ran.json["predicted"]["disk"] == pytest.approx(ran.json["nbytes"]["write"], rel=0.01)
    assert ran.json["predicted"]["disk"] > ran.json["nbytes"]["write"]
    human = run(
        "apply", "llava-v1.5", "--source", MANIFESTS / "llava-v1.5-7b.json", "--dry-run"
    ).out
    assert "of memory and 14.7 GB of disk\n" in human


def test_a_plan_that_is_not_complete_predicts_nothing(run: Run) -> None:
    ran = run("apply", "vip-llava", *SOURCES, "--dry-run", "--format", "json")
    assert not ran.json["complete"]
    assert "predicted" not in ran.json


def test_a_limit_that_is_too_low() -> None:
    """Of the process's own data, as `ulimit -d` sets it: refused before anything is written, with
    both figures.

    With an answer that isn't kept, for which torch and transformers are needed.
    """
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({220 * MIB}, {220 * MIB}))\n"
    )
    program += "from llava_remap.jobs import job; job.is_known = lambda *asked: False\n"
    program += "from llava_remap.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "apply",
        "llava-v1.5",
        *SOURCES,
        "--output",
        "deep/out",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 4, ran.stderr
    assert "LR501" in ran.stdout
    assert "(ulimit -d)" in ran.stdout
    assert not Path("deep").exists()


def test_no_room_for_torch_is_asked_for_where_it_is_not_used() -> None:
    """The answers are in the cache; the tokenizer's own file is read by SentencePiece alone."""
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({220 * MIB}, {220 * MIB}))\n"
    )
    program += "from llava_remap.cli import main; main()"
    command = [sys.executable, "-c", program, "apply", "llava-v1.5", *SOURCES, "--output", "out"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_from_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "limits", lambda: iter([(1 * MIB, "here")]))
    with pytest.raises(RemapError, match="LR501"):
        apply("llava-v1.5", [RELEASED / "sharded", f"vision_tower={CLIP}"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert plan(
        "llava-v1.5", [RELEASED / "sharded", f"vision_tower={CLIP}"], tmp_path / "out"
    ).plan.complete


@pytest.mark.parametrize(("free", "refused"), [(0, True), (60, True), (70, False), (100, False)])
def test_only_where_it_is_clearly_not_enough(
    free: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "limits", lambda: iter([(free * MIB, "this"), (10**15, "that")]))
    found = memory_problems(
        Predicted(10**12, 60 * MIB, 40 * MIB, 0)
    )  # what a process once took, it may have given back
    assert bool(found) == refused
    assert all(f"{free * MIB:,} are free (this)" in problem.cause for problem in found)


def test_control_groups(tmp_path: Path) -> None:
    """Both versions; the groups around one count, and what is only cached can make room."""
    for name, limit, taken in (("a", "1000", "900"), ("a/b", "max", "10"), ("a/b/c", "500", "100")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.current").write_text(f"{taken}\n")
        (tmp_path / name / "memory.stat").write_text("anon 5\ninactive_file 20\nactive_file 3\n")
    own = tmp_path / "own"
    own.write_text("0::/a/b/c\n")
    assert list(limits._control_groups(7, tmp_path, own)) == [
        500 - 100 + 23 + 7,
        1000 - 900 + 23 + 7,
    ]
    first = tmp_path / "memory" / "a"
    first.mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text("1000\n")
    (first / "memory.usage_in_bytes").write_text("400\n")
    (first / "memory.stat").write_text("total_inactive_file 30\n")
    own.write_text("9:cpu,cpuacct:/a\n4:memory:/a\n")
    assert list(limits._control_groups(0, tmp_path, own)) == [630]
    assert list(limits._control_groups(0, tmp_path, tmp_path / "none")) == []


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where the unit is another one."""
    monkeypatch.setattr(limits, "_table", lambda path: {})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_nbytes() == peak
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_nbytes() == peak * 1024
