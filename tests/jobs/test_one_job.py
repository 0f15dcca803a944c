"""A job has its folder and its sources to itself, or ends without a trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_remap.core.problem import RemapError
from llava_remap.jobs import job as job_module
from llava_remap.jobs.apply import apply, plan
from llava_remap.jobs.job import Job
from llava_remap.verification import strict_load, verify_folder
from llava_remap.verification.record import read_record
from tests.conftest import CLIP, MANIFESTS, RELEASED, Run

TOWER = f"vision_tower={CLIP}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copytree(RELEASED / "bin", tmp_path / "source")
    return tmp_path / "source"


def planned(source: Path) -> Job:
    return plan("llava-v1.5", [str(source), TOWER], "out")


def refusal(job: Job, code: str) -> str:
    with pytest.raises(RemapError) as caught:
        job.run()
    assert [problem.code for problem in caught.value.problems] == [code]
    return caught.value.problems[0].cause


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def during_the_load(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Something happens once, while the weights are there and nothing else is."""
    left = [happens]

    def load(*arguments: Any) -> Any:
        if left:
            left.pop()()
        return strict_load(*arguments)

    monkeypatch.setattr(job_module, "strict_load", load)


def test_two_jobs_on_one_output(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both were planned when the folder wasn't there. The second is refused, the first isn't
    disturbed.
    """
    second = plan("llava-v1.5", [str(RELEASED / "safetensors"), TOWER], "out")
    causes = []
    during_the_load(monkeypatch, lambda: causes.append(refusal(second, "LR503")))
    planned(source).run()
    assert causes == ["another job writes into out."]
    assert not list(Path("out").glob("*.partial"))
    assert not verify_folder(Path("out"), read_record(Path("out"))).problems


def test_a_job_carried_out_twice(source: Path) -> None:
    job = planned(source)
    job.run()
    before = contents(Path("out"))
    assert "exists and isn't an empty folder" in refusal(job, "LR503")
    assert contents(Path("out")) == before


def test_a_file_that_came_after_planning(source: Path) -> None:
    job = planned(source)
    Path("out").mkdir()
    Path("out/config.json").write_text("mine")
    refusal(job, "LR503")
    assert contents(Path("out")) == {"config.json": b"mine"}


def test_a_file_that_comes_while_a_job_runs(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    during_the_load(monkeypatch, lambda: Path("out/config.json").write_text("{}"))
    refusal(planned(source), "LR508")
    assert contents(Path("out"))["config.json"] == b"{}"
    assert {"llava_remap.json", "model.safetensors.index.json"}.isdisjoint(contents(Path("out")))


def reversed_order(source: Path) -> None:
    """As many bytes of the same tensors, each elsewhere."""
    path = source / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save(dict(reversed(state.items())), path)


def other_epsilon(source: Path) -> None:
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-3}))


def gone(source: Path) -> None:
    (source / "pytorch_model.bin").unlink()


CHANGES = [reversed_order, other_epsilon, gone]


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_after_planning(change: Callable[[Path], None], source: Path) -> None:
    job = planned(source)
    change(source)
    assert "changed since it was opened" in refusal(job, "LR102")
    assert not Path("out").exists()


@pytest.mark.parametrize("change", CHANGES[:2])
def test_a_source_that_changes_while_a_job_runs(
    change: Callable[[Path], None], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_the_load(monkeypatch, lambda: change(source))
    assert "changed since it was opened" in refusal(planned(source), "LR102")
    assert not Path("out").exists()


def test_a_job_planned_from_a_manifest(source: Path) -> None:
    job = plan("llava-v1.5", [str(MANIFESTS / "llava-v1.5-7b.json")], "out", dry_run=True)
    assert job.plan.complete
    refusal(job, "LR111")


@pytest.mark.parametrize("verify", ["Full", "some", None])
def test_a_check_that_there_is_not(verify: Any, source: Path) -> None:
    with pytest.raises(RemapError, match="verify must be one of meta, full, none"):
        planned(source).run(verify=verify)
    assert not Path("out").exists()


def test_one_source_as_a_text(source: Path) -> None:
    assert (
        plan("llava-v1.5", f"{RELEASED / 'bin'}", "out").checkpoints["model"].path
        == RELEASED / "bin"
    )


@pytest.mark.parametrize("verify", ["meta", "full", "none"])
def test_progress_adds_up(verify: Any) -> None:
    job = plan("llava-v1.5", [str(RELEASED / "sharded"), TOWER], "out")
    told: list[int] = []
    job.run(told.append, verify=verify)
    assert sum(told) == job.nbytes_to_handle(verify)


def test_what_is_found_while_writing_is_in_the_report(
    run: Run, monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    """The plan was complete; what went wrong since is in both, and nothing says that it was
    done.
    """
    during_the_load(monkeypatch, lambda: other_epsilon(source))
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        TOWER,
        "--report",
        "plan.json",
        "--format",
        "json",
    )
    assert ran.code == 3
    for content in (ran.json, json.loads(Path("plan.json").read_text())):
        assert (content["format"], content["complete"]) == ("llava-remap/plan", False)
        assert [problem["code"] for problem in content["problems"]] == ["LR102"]
        assert "result" not in content
    assert "LR102" in ran.err


@pytest.mark.parametrize(
    "name", ["out/llava_remap.json", "out/plan.json", "./out/../out/config.json"]
)
def test_no_report_into_the_output(name: str, run: Run) -> None:
    Path("out").mkdir()
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        TOWER,
        "--output",
        "out",
        "--report",
        name,
    )
    assert ran.code == 4
    assert "is inside the output" in ran.err
    assert not any(Path("out").iterdir())


def test_key_order_of_a_source_is_kept_warm_or_cold(source: Path) -> None:
    """Two generation configs that differ in the order of their keys: neither gives the other's
    file.
    """
    for order in (1, -1):
        path = source / "generation_config.json"
        path.write_text(json.dumps(dict([("num_beams", 1), ("max_length", 77)][::order])))
        apply("llava-v1.5", [str(source), TOWER], f"out{order}", verify="none")
        written = json.loads(Path(f"out{order}/generation_config.json").read_text())
        assert [key for key in written if key in ("num_beams", "max_length")] == [
            "num_beams",
            "max_length",
        ][::order]
