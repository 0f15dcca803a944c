"""Answers kept on disk: found again, never out of date, and never in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_remap import cache
from llava_remap.apply import apply
from llava_remap.cache import cached
from llava_remap.errors import RemapError, refuse
from llava_remap.verify import strict, strict_load
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
    assert cached("q", {"x": 1}, ask) == cached("q", {"x": 1}, ask) == ask.answer
    assert ask.times == 1


@pytest.mark.parametrize("facts", [{"x": 2}, {"x": "1"}, {"x": 1, "y": None}, {}])
def test_other_facts_are_another_question(facts: dict[str, object], folder: Path) -> None:
    cached("q", {"x": 1}, Asked({"a": b"other"}))
    ask = Asked()
    assert cached("q", facts, ask) == ask.answer
    assert ask.times == 1


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "torch"])
def test_another_version_is_another_question(library: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("q", {}, Asked({"a": b"other"}))
    versions = {**cache._versions(), library: "99.0"}
    monkeypatch.setattr(cache, "_versions", lambda: versions)
    ask = Asked()
    assert cached("q", {}, ask) == ask.answer


def test_other_code_is_another_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached("q", {}, Asked({"a": b"other"}))
    monkeypatch.setattr(cache, "code_digest", lambda: "changed")
    ask = Asked()
    assert cached("q", {}, ask) == ask.answer


def test_nothing_is_kept_of_a_development_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_versions", lambda: {"transformers": "5.24.0.dev0"})
    ask = Asked()
    assert cached("q", {}, ask) == cached("q", {}, ask)
    assert ask.times == 2
    assert not folder.exists()


def test_a_refusal_is_not_kept(folder: Path) -> None:
    def refused() -> dict[str, bytes]:
        raise refuse("LR112", "a cause")

    with pytest.raises(RemapError):
        cached("q", {}, refused)
    assert not folder.exists()
    assert cached("q", {}, Asked()) == Asked().answer


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "folder"])
def test_a_damaged_entry_is_asked_for_again(damage: str, folder: Path) -> None:
    cached("q", {}, Asked())
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
    assert cached("q", {}, ask) == ask.answer
    assert ask.times == 1
    if damage != "folder":
        assert cached("q", {}, ask) == ask.answer
        assert ask.times == 1


def test_whichever_byte_is_damaged(folder: Path) -> None:
    ask = Asked({"a.json": b'{"some": "text, some more text"}' * 3})
    cached("q", {}, ask)
    [entry] = folder.rglob("*.zip")
    content = entry.read_bytes()
    for at in range(len(content)):
        entry.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        found = cached("q", {}, ask)
        # A changed name or comment is outside of what has a checksum; the content never is another one.
        assert list(found.values()) in ([ask.answer["a.json"]], [])


def test_a_folder_that_cant_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAVA_REMAP_CACHE", str(tmp_path / "file" / "cache"))
    ask = Asked()
    assert cached("q", {}, ask) == cached("q", {}, ask) == ask.answer
    assert ask.times == 2


def test_the_oldest_go_when_there_are_too_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST", 3)
    for number in range(3):
        cached("q", {"x": number}, Asked())
    for path in folder.rglob("*.zip"):
        os.utime(path, (1, 1))
    cached("q", {"x": 0}, Asked())  # used again
    cached("q", {"x": 3}, Asked())
    assert len(list(folder.rglob("*.zip"))) == 3
    ask = Asked()
    cached("q", {"x": 0}, ask)
    cached("q", {"x": 3}, ask)
    assert ask.times == 0
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".zip"}


@pytest.mark.parametrize(
    "arguments",
    [("--source", str(MANIFESTS / "llava-v1.5-7b.json")), SOURCES, (*SOURCES, "--format", "json")],
    ids=["manifest", "checkpoint", "json"],
)
def test_a_warm_dry_run_imports_nothing_heavy(arguments: tuple[str, ...], run: Run, folder: Path) -> None:
    command = ("apply", "llava-v1.5", *arguments, "--dry-run")
    assert "torch" in heavy(*command)
    assert heavy(*command) == set()


def with_spare_rows(tensors: dict[str, torch.Tensor]) -> None:
    """Rows for the new tokens are there, so that nothing is computed."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:64]])


@pytest.mark.parametrize("tensors", [len, with_spare_rows], ids=["expanded", "renamed only"])
def test_a_warm_job_imports_only_what_it_computes_with(
    tensors: Callable[[dict[str, torch.Tensor]], object], changed: Changed, folder: Path
) -> None:
    """Though it is loaded strictly: the loader has seen these names, dtypes and shapes before. The norms are always looked at."""
    source = changed(tensors=tensors, config=lambda config: config.pop("vocab_size"))
    if tensors is with_spare_rows:  # padded, for one token more than a multiple of 64
        (source / "added_tokens.json").write_text(json.dumps({"<own>": 320}))
    command = ("apply", "llava-v1.5", "--source", source, "--source", f"vision_tower={CLIP}", "--output")
    assert "torch" in heavy(*command, "cold")
    assert heavy(*command, "warm") == {"numpy"}
    cold, warm = ({path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("cold", "warm"))
    assert warm == cold


def test_what_the_loader_says_is_kept_for_these_headers_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_cold_and_warm_say_the_same(run: Run, folder: Path) -> None:
    cold, warm = (run("apply", "llava-v1.5", *SOURCES, "--dry-run") for _ in range(2))
    assert cold == warm
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
