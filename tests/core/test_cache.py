"""Answers kept on disk: found again, never out of date, and never in the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap.core import cache
from llava_remap.core.cache import cached
from llava_remap.core.files import is_foreign
from llava_remap.core.problem import RemapError, refuse
from llava_remap.jobs.apply import apply
from llava_remap.verification import strict, strict_load
from tests.conftest import CLIP, MANIFESTS, RELEASED, Changed, Run, heavy

SOURCES = ("--source", str(RELEASED / "sharded"), "--source", f"vision_tower={CLIP}")


class Asked:
    """Answers, and counts how often it was asked."""

    def __init__(self, answer: dict[str, bytes] | None = None) -> None:
        self.answer = answer or {"a.json": b"{}", "b.bin": bytes(range(256)) * 1000}
        self.times = 0

    def __call__(self) -> dict[str, bytes]:
        self.times += 1
        return self.answer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAVA_REMAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_second_time_nobody_is_asked(folder: Path) -> None:
    ask = Asked()
    assert cached("q", {"x": 1}, ask, dict) == cached("q", {"x": 1}, ask, dict) == ask.answer
    assert ask.times == 1


@pytest.mark.parametrize("facts", [{"x": 2}, {"x": "1"}, {"x": 1, "y": None}, {}])
def test_other_facts_are_another_question(facts: dict[str, object], folder: Path) -> None:
    cached("q", {"x": 1}, Asked({"a": b"other"}), dict)
    ask = Asked()
    assert cached("q", facts, ask, dict) == ask.answer
    assert ask.times == 1


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "torch"])
def test_another_version_is_another_question(
    library: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached("q", {}, Asked({"a": b"other"}), dict)
    versions = {**cache._versions(), library: "99.0"}
    monkeypatch.setattr(cache, "_versions", lambda: versions)
    ask = Asked()
    assert cached("q", {}, ask, dict) == ask.answer


def test_other_code_is_another_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("q", {}, Asked({"a": b"other"}), dict)
    monkeypatch.setattr(cache, "code_digest", lambda: "changed")
    ask = Asked()
    assert cached("q", {}, ask, dict) == ask.answer


def test_nothing_is_kept_of_a_development_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_versions", lambda: {"transformers": "5.24.0.dev0"})
    ask = Asked()
    assert cached("q", {}, ask, dict) == cached("q", {}, ask, dict)
    assert ask.times == 2
    assert not folder.exists()


def test_a_refusal_is_not_kept(folder: Path) -> None:
    def refused() -> dict[str, bytes]:
        raise refuse("LR112", "a cause")

    with pytest.raises(RemapError):
        cached("q", {}, refused, dict)
    assert not folder.exists()
    assert cached("q", {}, Asked(), dict) == Asked().answer


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "folder"])
def test_a_damaged_entry_is_asked_for_again(damage: str, folder: Path) -> None:
    cached("q", {}, Asked(), dict)
    [entry] = folder.rglob("*.zip")
    content = entry.read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "text": b"not a zip file",
    }
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        entry.write_bytes(damaged[damage])
    ask = Asked()
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 1
    if damage != "folder":
        assert cached("q", {}, ask, dict) == ask.answer
        assert ask.times == 1


def test_whichever_byte_is_damaged(folder: Path) -> None:
    ask = Asked({"a.json": b'{"some": "text, some more text"}' * 3})
    cached("q", {}, ask, dict)
    [entry] = folder.rglob("*.zip")
    content = entry.read_bytes()
    for at in range(len(content)):
        entry.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        found = cached("q", {}, ask, dict)
        assert found == ask.answer


def test_a_folder_that_cant_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAVA_REMAP_CACHE", str(tmp_path / "file" / "cache"))
    ask = Asked()
    assert cached("q", {}, ask, dict) == cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2


def planted(entry: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Somebody else's entry in place of one."""
    with zipfile.ZipFile(entry) as old:
        answer = {name: old.read(name) for name in old.namelist()}
        comment = old.comment
    with zipfile.ZipFile(entry, "w") as new:
        for name, content in change(answer).items():
            new.writestr(name, content)
        new.comment = comment


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: {},
        lambda answer: {**answer, "a.json": b'{"changed": 1}'},
        lambda answer: {**answer, "../planted.txt": b"x"},
        lambda answer: {**answer, "/tmp/planted.txt": b"x"},
        lambda answer: {**answer, "more.json": b"{}"},
        lambda answer: {"a.json": answer["a.json"]},
        lambda answer: {**answer, **{f"{number}": b"" for number in range(100)}},
    ],
    ids=["no names", "content", "leads out", "absolute", "one more", "one less", "many"],
)
def test_a_planted_entry_is_asked_for_again(
    change: Callable[[dict[str, bytes]], dict[str, bytes]], folder: Path
) -> None:
    ask = Asked()
    cached("q", {}, ask, dict)
    [entry] = folder.rglob("*.zip")
    planted(entry, change)
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2


def test_an_entry_that_grows_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asked({"a.json": bytes(100_000)})
    cached("q", {}, ask, dict)
    monkeypatch.setattr(cache, "_LARGEST", 99_999)
    monkeypatch.setattr(zipfile.ZipFile, "read", Mock(side_effect=AssertionError("read")))
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2


def test_an_entry_under_another_name_is_no_answer(folder: Path) -> None:
    cached("q", {"x": 1}, Asked({"a": b"1"}), dict)
    [entry] = folder.rglob("*.zip")
    cached("q", {"x": 2}, Asked({"a": b"2"}), dict)
    [other] = set(folder.rglob("*.zip")) - {entry}
    entry.replace(other)
    ask = Asked({"a": b"2"})
    assert cached("q", {"x": 2}, ask, dict) == {"a": b"2"}
    assert ask.times == 1


@pytest.mark.parametrize("at", ["", "q", "entry"])
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_what_others_can_write_is_not_used(at: str, mode: int, folder: Path) -> None:
    ask = Asked()
    cached("q", {}, ask, dict)
    path = next(folder.rglob("*.zip")) if at == "entry" else folder / at
    path.chmod(mode)
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2
    if at != "entry":  # nothing was written there
        assert len(list(folder.rglob("*.zip"))) == 1
        (entry,) = folder.rglob("*.zip")
        entry.unlink()
        cached("q", {}, ask, dict)
        assert not list(folder.rglob("*.zip"))


@pytest.mark.parametrize("at", ["", "q", "entry"])
def test_what_others_own_is_not_used(
    at: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's number is this user's, so that all but one part is this user's own."""
    ask = Asked()
    cached("q", {}, ask, dict)
    path = next(folder.rglob("*.zip")) if at == "entry" else folder / at
    foreign = path.stat()
    monkeypatch.setattr(
        cache, "is_foreign", lambda status: os.path.samestat(status, foreign) or is_foreign(status)
    )
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2


@pytest.mark.parametrize("what", ["link", "pipe", "link to the folder of another user"])
def test_what_is_no_file_of_ours_is_not_opened(
    what: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Asked()
    cached("q", {}, ask, dict)
    [entry] = folder.rglob("*.zip")
    if what == "pipe":
        entry.unlink()
        os.mkfifo(entry, 0o600)
    elif what == "link":
        entry.rename(tmp_path / "elsewhere.zip")
        entry.symlink_to(tmp_path / "elsewhere.zip")
    else:
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
    assert cached("q", {}, ask, dict) == ask.answer
    assert ask.times == 2


Kept = list[tuple[str, bytes, dict[str, bytes]]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Kept]:
    """What a job writes that finds no answer, and the answers that it keeps."""
    work, kept, keep = tmp_path_factory.mktemp("cold"), Kept(), cache._keep

    def record(question: str, key: bytes, answer: dict[str, bytes]) -> None:
        kept.append((question, key, answer))
        keep(question, key, answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_REMAP_CACHE", str(work / "cache"))
        patch.setattr(cache, "_keep", record)
        apply("llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], work / "out")
    assert {question for question, _, _ in kept} == {
        "folder", "known_keys", "language_models", "strict_load", "target", "text_model"
    }  # fmt: skip
    return contents(work / "out"), kept


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"not JSON", b'{"shapes": 1}', b"\xff"])
def test_an_answer_of_another_form_is_asked_for_again(
    content: bytes, folder: Path, run: Run, cold: tuple[dict[str, bytes], Kept]
) -> None:
    """Whoever wrote it, with a digest that is right: every question looks at its own answer."""
    written, kept = cold
    for question, key, answer in kept:
        cache._keep(question, key, dict.fromkeys(answer, content))
    assert len(list(folder.rglob("*.zip"))) == len(kept)
    assert run("apply", "llava-v1.5", *SOURCES, "--output", "warm").code == 0
    assert contents(Path("warm")) == written


def test_without_a_home_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_REMAP_CACHE", raising=False)
    monkeypatch.setattr(cache, "user_cache_path", lambda *_, **__: Path("~/.cache/llava-remap"))
    ask = Asked()
    assert cached("q", {}, ask, dict) == cached("q", {}, ask, dict) == ask.answer
    assert (ask.times, Path("~").exists()) == (2, False)


def test_the_oldest_go_when_there_are_too_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MOST", 3)
    for number in range(3):
        cached("q", {"x": number}, Asked(), dict)
    for path in folder.rglob("*.zip"):
        os.utime(path, (1, 1))
    cached("q", {"x": 0}, Asked(), dict)  # used again
    cached("q", {"x": 3}, Asked(), dict)
    assert len(list(folder.rglob("*.zip"))) == 3
    ask = Asked()
    cached("q", {"x": 0}, ask, dict)
    cached("q", {"x": 3}, ask, dict)
    assert ask.times == 0
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".zip"}


@pytest.mark.parametrize(
    "arguments",
    [("--source", str(MANIFESTS / "llava-v1.5-7b.json")), SOURCES, (*SOURCES, "--format", "json")],
    ids=["manifest", "checkpoint", "json"],
)
def test_a_warm_dry_run_imports_nothing_heavy(
    arguments: tuple[str, ...], run: Run, folder: Path
) -> None:
    command = ("apply", "llava-v1.5", *arguments, "--dry-run")
    assert run(*command).code == 0
    assert heavy(*command) == set()


def test_a_cold_dry_run_imports_torch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the tests beside this one would see."""
    source = MANIFESTS / "llava-v1.5-7b.json"
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "torch.py").write_text("raise ImportError('torch is imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    with pytest.raises(subprocess.CalledProcessError) as raised:
        heavy("apply", "llava-v1.5", "--source", source, "--dry-run")
    assert "torch is imported" in raised.value.stderr


def with_spare_rows(tensors: dict[str, torch.Tensor]) -> None:
    """Rows for the new tokens are there, so that nothing is computed."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:64]])


@pytest.mark.parametrize("tensors", [len, with_spare_rows], ids=["expanded", "renamed only"])
def test_a_warm_job_imports_only_what_it_computes_with(
    tensors: Callable[[dict[str, torch.Tensor]], object],
    changed: Changed,
    run: Run,
    folder: Path,
) -> None:
    """Though it is loaded strictly: the loader has seen these names, dtypes and shapes before.
    The mean sizes of norms are computed without numpy.
    """
    source = changed(tensors=tensors, config=lambda config: config.pop("vocab_size"))
    if tensors is with_spare_rows:  # the table is padded for one token beyond a multiple of 64
        (source / "added_tokens.json").write_text(json.dumps({"<own>": 320}))
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
    )
    assert run(*command, "cold").code == 0
    assert heavy(*command, "warm") == ({"numpy"} if tensors is len else set())
    cold, warm = (
        {path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("cold", "warm")
    )
    assert warm == cold


def test_what_the_loader_says_is_kept_for_these_headers_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem too is kept; files with other headers are asked for anew."""
    apply("llava-v1.5", [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], "out")
    config = json.loads(Path("out", "config.json").read_text())
    files = sorted(Path("out").glob("*.safetensors"))
    nobody = Mock(side_effect=AssertionError("asked again"))
    wrong = strict_load(files[1:], "LlavaForConditionalGeneration", config)
    assert [problem.code for problem in wrong] == ["LR601"]
    with monkeypatch.context() as patch:
        patch.setattr(strict, "_ask", nobody)
        assert strict_load(files[1:], "LlavaForConditionalGeneration", config) == wrong
        assert strict_load(files, "LlavaForConditionalGeneration", config) == []
    tensors = load_file(files[0])
    tensors["language_model.model.norm.weight"] = torch.ones(63)
    save_file(tensors, files[0], {"format": "pt"})
    [problem] = strict_load(files, "LlavaForConditionalGeneration", config)
    assert "1 names as mismatched" in problem.cause


def without_memory(text: str) -> str:
    assert "needs at most" in text
    return re.sub(r"needs at most \S+ MB", "", text)


def test_cold_and_warm_say_the_same(run: Run, folder: Path) -> None:
    cold, warm = (run("apply", "llava-v1.5", *SOURCES, "--dry-run") for _ in range(2))
    # Memory is left out: by the second run, this process has imported more.
    assert (cold.code, without_memory(cold.out), cold.err) == (
        warm.code,
        without_memory(warm.out),
        warm.err,
    )
    assert run("apply", "llava-v1.5", *SOURCES, "--output", "warm").code == 0
    for entry in folder.rglob("*.zip"):
        entry.unlink()
    assert run("apply", "llava-v1.5", *SOURCES, "--output", "cold").code == 0
    files = {path.name for path in Path("warm").iterdir()}
    assert files == {path.name for path in Path("cold").iterdir()}
    assert all(Path("warm", name).read_bytes() == Path("cold", name).read_bytes() for name in files)


def test_a_changed_tokenizer_or_config_is_seen(run: Run, changed: Changed) -> None:
    """What was kept for one folder isn't taken for another."""
    source = changed()
    sources = ("--source", source, "--source", f"vision_tower={CLIP}")
    assert run("apply", "llava-v1.5", *sources, "--dry-run").code == 0
    (source / "tokenizer.model").write_bytes(b"not a model")
    ran = run("apply", "llava-v1.5", *sources, "--dry-run")
    assert ran.code == 3
    assert "LR113" in ran.out + ran.err
