"""`--resume`: finished files are kept, all others are written again, and the folder ends as without
the interruption.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_remap.core.problem import RemapError
from llava_remap.execute import INDEX, files
from llava_remap.execute.unfinished import CLAIM, Claim, read_claim
from llava_remap.jobs.apply import apply, plan
from llava_remap.jobs.run import Result
from llava_remap.verification.record import RECORD
from tests.compat.checkpoints import FAMILIES, convert_twin
from tests.conftest import CLIP, RELEASED, Run, beside_progress

WEIGHTS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def job(source: Path = RELEASED / "sharded", **options: Any) -> Result:
    return apply(
        "llava-v1.5",
        [str(source), f"vision_tower={CLIP}"],
        "out",
        **{"verify": "none", "jobs": 1, **options},
    )


def contents(folder: Path = Path("out")) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def kept() -> dict[str, tuple[int, int]]:
    """The weight files: inode, and when they were written."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in Path("out").glob("model-*")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a job that was never interrupted writes."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    apply("llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], folder, verify="none")
    return contents(folder)


def interrupted(*arguments: Any, **named: Any) -> Any:
    raise KeyboardInterrupt


def break_off(monkeypatch: pytest.MonkeyPatch, stage: str = "strict_load", **options: Any) -> None:
    """Begin a job that is interrupted at a stage: a function of `apply`, or when a file is about
    to get its name, or has it.
    """
    replace = Path.replace

    def named(path: Path, target: Path) -> Path:
        if stage == f"before {target.name}":
            raise KeyboardInterrupt
        done = replace(path, target)
        if stage == f"after {target.name}":
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", named)
        if " " not in stage:
            home = "job" if stage in ("strict_load", "record_json") else "run"
            patch.setattr(f"llava_remap.jobs.{home}.{stage}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job(**{"verify": "meta" if stage == "strict_load" else "none", **options})


#: And how many weight files are finished by then. After a failure, no further file is begun.
STAGES = {
    "write_shards": 0,
    f"before {WEIGHTS[0]}": 0,
    f"after {WEIGHTS[0]}": 1,
    f"before {WEIGHTS[1]}": 1,
    f"after {WEIGHTS[1]}": 2,
    f"before {WEIGHTS[2]}": 2,
    f"after {WEIGHTS[2]}": 3,
    "strict_load": 3,
    "before config.json": 3,
    "after config.json": 3,
    f"before {INDEX}": 3,
    f"after {INDEX}": 3,
    "record_json": 3,
    f"before {RECORD}": 3,
    f"after {RECORD}": 3,
}


@pytest.mark.parametrize("stage", STAGES)
def test_ends_as_if_it_had_never_broken_off(
    stage: str, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, stage)
    before = kept()
    assert len(before) == STAGES[stage]
    assert contents().keys() == {CLAIM, *before} if before else not Path("out").exists()
    done = job(resume=True)
    assert done.reused == len(before)
    assert contents() == whole
    assert kept().items() >= before.items()


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": damage,
    "truncated": lambda path: os.truncate(path, 1000),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "deleted": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_was_damaged_since_is_written_again(
    how: str, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch)
    before = kept()
    DAMAGE[how](Path("out") / WEIGHTS[1])
    assert job(resume=True).reused == 2
    assert contents() == whole
    assert {name for name, stamp in kept().items() if before[name] == stamp} == {
        WEIGHTS[0],
        WEIGHTS[2],
    }


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_with_another_number_of_jobs(
    jobs: int, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch, f"after {WEIGHTS[0]}", jobs=2)
    job(resume=True, jobs=jobs)
    assert contents() == whole


def test_another_check_is_no_other_job(
    whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch)
    assert (done := job(resume=True, verify="full")).reused == 3
    assert {name for name, digest in contents().items() if whole[name] != digest} == {RECORD}
    assert done.verified == "full"


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "an empty claim"])
def test_where_nothing_was_begun(there: str, whole: dict[str, str]) -> None:
    if there != "nothing":
        Path("out").mkdir()
    if there == "an empty claim":
        (Path("out") / CLAIM).touch()
    assert job(resume=True).reused == 0
    assert contents() == whole


def refused(**options: Any) -> str:
    """Code and cause of what a job is refused for, when it is planned; nothing changes."""
    before = contents(), kept()
    rules, source = options.pop("rules", "llava-v1.5"), options.pop("source", RELEASED / "sharded")
    [problem] = plan(rules, [str(source), f"vision_tower={CLIP}"], "out", **options).plan.problems
    assert (contents(), kept()) == before
    return f"{problem.code} {problem.cause}"


def test_without_asking_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch)
    assert refused() == "LR505 out has an unfinished job: 3 of 3 weight files are finished."


def touch(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    os.utime(source / "config.json", (0, 0))
    return {}


def change(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    damage(source / "pytorch_model-00001-of-00002.bin")
    return {}


def version(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("llava_remap.jobs.job.__version__", "99.0")
    return {}


def plugin(source: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(
        "llava_remap.jobs.job.provenance",
        lambda use: {"distribution": "another", "version": "1"},
    )
    return {}


def option(**options: Any) -> Callable[..., dict[str, Any]]:
    return lambda source, monkeypatch: options


#: A change, and the message that names it.
CHANGES: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "source touched": (touch, r"source `model`: config\.json$"),
    "source changed": (change, r"source `model`: pytorch_model-00001-of-00002\.bin$"),
    "--dtype": (option(dtype="float32"), r"dtypes written: F16, F32 then, F32 now$"),
    "--layout": (option(layout="module-5.6"), r"layout: classic then, module-5\.6 now$"),
    "--max-shard-size": (option(max_shard_nbytes=90000), r"weight files: 3 then, \d now$"),
    "--vocab": (
        option(vocab=512),
        r"options of expand_embeddings: vocab; "
        r"rows of what grows: 384, 384 then, 512, 512 now$",
    ),
    "version": (version, r"llava-remap: \d\S+ \(\w{12}\) then, 99\.0 \(\w{12}\) now$"),
    "plug-in": (plugin, r"post-load rules: expand_embeddings$"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_job_is_refused(
    what: str, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(RELEASED / "sharded", "source")
    break_off(monkeypatch, source=Path("source"))
    do, named = CHANGES[what]
    said = refused(resume=True, source=Path("source"), **do(Path("source"), monkeypatch))
    cause, changed = said.split(" What has changed: ")
    assert cause == "LR504 out has an unfinished job that is different."
    assert re.match(named, changed.removesuffix("."))


def test_another_form_of_the_projector_is_refused(tmp_path: Path) -> None:
    twin, made, output = FAMILIES["llava-lightning-7b-v1-1.released"], tmp_path / "made", "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava_remap.jobs.job.strict_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert_twin(twin, made, Path(output))
    sources = [str(made), f"vision_tower={made / 'vision_tower'}"]
    with pytest.raises(RemapError, match=r"changed: options of identity_layer: projector_form\."):
        apply(twin.rules, sources, output, resume=True, projector_form="gelu")


def test_another_rule_file_is_refused_and_the_first_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = Path("mine.yaml")
    text = "schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [llava-v1.5.yaml]\n"
    rules.write_text(text)
    sources = [str(RELEASED / "sharded"), f"vision_tower={CLIP}"]
    with monkeypatch.context() as patch:
        patch.setattr("llava_remap.jobs.job.strict_load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            apply(rules, sources, "out")
    rules.write_text(text.replace("one's own", "one's own, changed"))
    assert re.fullmatch(
        r"LR504 .* What has changed: rule file: mine 1\.0\.0 \(\w{12}\) then, mine 1\.0\.0 "
        r"\(\w{12}\) now\.",
        refused(resume=True, rules=rules),
    )
    rules.write_text(text)
    assert apply(rules, sources, "out", resume=True, verify="none").reused == 3


def test_other_peoples_files_are_left_alone(
    whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch)
    Path("out/notes.txt").write_text("mine")
    before = contents()
    with pytest.raises(RemapError) as caught:
        job(resume=True)
    assert (
        str(caught.value)
        == "LR503 output not empty: out has files that the job begun in it didn't write: "
        "notes.txt. "
        "Move these files to another folder."
    )
    assert contents() == before
    Path("out/notes.txt").unlink()
    assert job(resume=True).reused == 3
    assert contents() == whole


def test_a_weight_file_that_the_claim_doesnt_name_is_somebody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_off(monkeypatch)
    lines = (Path("out") / CLAIM).read_text().splitlines()
    (Path("out") / CLAIM).write_text(
        "\n".join(line for line in lines if f'"file": "{WEIGHTS[1]}"' not in line)
    )
    before = contents()
    with pytest.raises(RemapError, match=f"didn't write: {WEIGHTS[1]}"):
        job(resume=True)
    assert contents() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_job_that_still_runs(resume: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch)
    claim = Claim(Path("out"))
    assert refused(resume=resume) == "LR503 another job writes into out."
    claim.release(remove=False)
    assert refused(resume=False).startswith("LR505")


@pytest.mark.parametrize("resume", [False, True])
def test_one_that_began_after_this_was_planned(resume: bool) -> None:
    planned = plan(
        "llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], "out", resume=resume
    )
    Path("out").mkdir()
    claim = Claim(Path("out"))
    with pytest.raises(RemapError, match=r"^LR503.* another job writes into out\."):
        planned.run(verify="none")
    assert contents().keys() == {CLAIM}
    claim.release(remove=True)
    assert list(Path("out").iterdir()) == []


def test_a_job_that_still_runs_over_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which makes of it a lock on bytes, and that for writing needs a file that is opened to be
    written.
    """
    break_off(monkeypatch)
    claim, flock = Claim(Path("out")), fcntl.flock

    def over_nfs(file: int, kind: int) -> None:
        if kind & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", over_nfs)
    assert refused() == "LR503 another job writes into out."
    claim.release(remove=False)
    assert refused().startswith("LR505")


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_a_claim_that_cant_be_read_just_now(
    error: BaseException, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(monkeypatch)
    before = contents()
    planned = plan(
        "llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], "out", resume=True
    )

    def failing(folder: Path) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_claim", failing)
        with pytest.raises((RemapError, KeyboardInterrupt)):
            planned.run(verify="none")
    assert contents() == before
    assert job(resume=True).reused == 3
    assert contents() == whole


def test_a_claim_of_terabytes(tmp_path: Path) -> None:
    """Only its beginning is read."""
    (tmp_path / CLAIM).write_text(FACTS)
    os.truncate(tmp_path / CLAIM, 1 << 42)
    assert read_claim(tmp_path) is None


def test_a_finished_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    job()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("out").iterdir()}
    said = refused()
    assert said.startswith("LR503 out is finished: a job with the same plan wrote it.")
    said = refused(dtype="bfloat16")
    assert said.startswith("LR503 out is finished, and another job wrote it. What differs: dtypes")
    result = job(resume=True)
    assert (result.reused, result.nbytes) == (3, 0)
    assert result.files == tuple(sorted(path.name for path in before))
    said = refused(resume=True, dtype="bfloat16")
    assert said.startswith("LR503 out is finished, and another job wrote it. What differs: dtypes")
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path("out").iterdir()}
    assert after == before, "nothing is written"


def test_a_finished_folder_whose_source_or_files_changed() -> None:
    """Sizes and configs are the same: only the values differ."""
    source = Path(shutil.copytree(RELEASED / "safetensors", "source"))
    job(source)
    weights, given = min(Path("out").glob("*.safetensors")), source / "model.safetensors"
    for path, told in ((weights, f"was changed since: {weights.name}"), (given, "changed")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(RemapError, match=f"LR503 .*out is finished, but .*{told}"):
            job(source, resume=True)
        path.write_bytes(whole)
        assert job(source, resume=True).nbytes == 0


def test_what_a_killed_job_left_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a disk that is nearly full: what is there is kept, or goes before anything is written."""
    break_off(monkeypatch)
    Path("out", WEIGHTS[2]).unlink()
    Path("out", f"{WEIGHTS[2]}.partial").write_bytes(bytes(900_000))
    free = shutil.disk_usage(".")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    planned = plan(
        "llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], "out", resume=True
    )
    assert planned.plan.problems == ()


def test_what_is_left_never_looks_whole(
    whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the claim went, then damaged: record and index go first, in case it is
    killed again.
    """
    release, unlink, gone = Claim.release, Path.unlink, []
    with monkeypatch.context() as patch:
        patch.setattr(Claim, "release", lambda claim, remove: release(claim, remove=False))
        job()
    damage(Path("out") / WEIGHTS[1])

    def noted(path: Path, missing_ok: bool = False) -> None:
        gone.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", noted)
        assert job(resume=True).reused == 2
    assert gone[:2] == [RECORD, INDEX]
    assert contents() == whole


def test_a_torn_last_line(whole: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file was never named; those before it count."""
    break_off(monkeypatch)
    claim = Path("out") / CLAIM
    os.truncate(claim, claim.stat().st_size - 10)
    begun = read_claim(Path("out"))
    assert begun is not None
    assert len(begun.files) == 2
    [last] = set(WEIGHTS) - begun.files.keys()
    (Path("out") / last).rename(Path("out") / f"{last}.partial")
    assert job(resume=True).reused == 2
    assert contents() == whole


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_claim_that_others_may_write_to(
    mode: int, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could say of any weights that they are what was written."""
    break_off(monkeypatch)
    before = contents()
    (Path("out") / CLAIM).chmod(mode)
    with pytest.raises(RemapError, match=r"LR504 .*others may write to it"):
        job(resume=True)
    assert contents() == before


def test_a_claim_is_not_for_others_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    umask = os.umask(0)
    try:
        break_off(monkeypatch)
    finally:
        os.umask(umask)
    assert (Path("out") / CLAIM).stat().st_mode & 0o022 == 0


SOURCES = ("--source", str(RELEASED / "sharded"), "--source", f"vision_tower={CLIP}")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nowhere", "link to a claim"])
def test_what_is_in_the_place_of_a_claim(kind: str, resume: bool, run: Run) -> None:
    path = Path("out") / CLAIM
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        Path("claim").write_text(FACTS)
        path.symlink_to(Path("claim" if kind == "link to a claim" else "gone").absolute())
    words = {"pipe": "it is a named pipe", "folder": "it is a folder"}.get(kind, "it is a link")
    ran = run("apply", "llava-v1.5", *SOURCES, "--output", "out", *(["--resume"] if resume else []))
    said = " ".join((ran.out + ran.err).split())
    assert (ran.code, "LR508" in said, f"{path}: {words}" in said, "--resume goes on" in said) == (
        4,
        True,
        True,
        False,
    ), said


FACTS = json.dumps(
    {"format": "llava-remap/unfinished", "format_version": 1, "weights": ["a"], "facts": {}}
)
CLAIMS: dict[str, bytes] = {
    "no text": b"\xff\xfe\x00",
    "nested deeply": b"[" * 100_000,
    "a list": b"[1, 2]\n",
    "another version": FACTS.replace('"format_version": 1', '"format_version": 2').encode(),
    "no facts": FACTS.replace('"facts": {}', '"facts": 3').encode(),
    "a number without end": FACTS.encode()
    + b'\n{"file": "a", "nbytes": Infinity, "xxh3_128": "0"}\n',
    "no size": f'{FACTS}\n{{"file": "a", "nbytes": null, "xxh3_128": "0"}}\n'.encode(),
    "half of the first line": FACTS[:60].encode(),
}


def test_a_claim_that_says_something() -> None:
    """Those below say nothing by what is wrong with them alone."""
    Path("out").mkdir()
    (Path("out") / CLAIM).write_text(FACTS)
    assert read_claim(Path("out")) is not None


@pytest.mark.parametrize("what", CLAIMS)
def test_a_claim_that_says_nothing(what: str, run: Run) -> None:
    """With nothing beside it, the folder is an empty one; else nobody knows what lies there."""
    Path("out").mkdir()
    (Path("out") / CLAIM).write_bytes(CLAIMS[what])
    assert read_claim(Path("out")) is None
    assert job(resume=True).reused == 0
    assert CLAIM not in contents()
    (Path("out") / CLAIM).write_bytes(CLAIMS[what])
    cause = f"LR503 out exists and isn't an empty folder: a job was killed in it (it has {CLAIM})."
    assert refused(resume=True) == refused() == cause


def test_a_claim_that_leads_elsewhere() -> None:
    Path("precious").write_text("mine")
    Path("out").mkdir()
    (Path("out") / CLAIM).symlink_to(Path("precious").absolute())
    with pytest.raises(RemapError, match="LR508"):
        job()
    assert Path("precious").read_text() == "mine"


def test_verify_says_that_it_is_unfinished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(monkeypatch)
    ran = run("verify", "out")
    assert ran.code == 4
    assert "LR505" in ran.err
    assert "3 of 3 weight files are finished" in ran.err


def test_through_the_command_line(
    run: Run, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the folder's default name: what is told is enough to go on."""
    shutil.copytree(RELEASED / "sharded", "mine")
    command = ("apply", "llava-v1.5", "--source", "mine", "--source", f"vision_tower={CLIP}")
    with monkeypatch.context() as patch:
        patch.setattr("llava_remap.jobs.job.strict_load", interrupted)
        ran = run(*command)
    assert ran.code == 130
    said = (
        "Interrupted: 3 of 3 weight files are finished in ./mine-hf. The same command with "
        "--resume goes on from there."
    )
    assert beside_progress(ran.err).strip() == said
    assert run(*command).code == 4
    assert run(*command, "--resume", "--dtype", "float32").code == 4
    ran = run(*command, "--resume", "--verify", "none")
    assert ran.code == 0, ran.err
    assert {
        name: digest for name, digest in contents(Path("mine-hf")).items() if name != RECORD
    } == {name: digest for name, digest in whole.items() if name != RECORD}
    assert json.loads(Path("mine-hf", RECORD).read_text())["sources"]["model"]["location"] == "mine"
    assert run("verify", "mine-hf").code == 0
