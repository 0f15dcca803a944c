"""Work in a process of its own ends, whatever it does, and takes nothing with it."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from llava_remap.core import bounded as bounds
from llava_remap.core.bounded import BeyondBoundsError, bounded
from llava_remap.core.problem import RemapError

WORK = "tests.core.stranger"


def test_what_keeps_within_the_bounds_is_answered() -> None:
    assert bounded(WORK, {"do": "echo", "text": "\ud800 é"}) == {"do": "echo", "text": "\ud800 é"}


@pytest.mark.parametrize(
    ("do", "words"),
    [
        ("think", "2 s of processor time"),
        ("grow", "MB of memory"),
        ("crash", "ends the process by signal 11"),
    ],
)
def test_what_goes_beyond_is_ended(do: str, words: str) -> None:
    with pytest.raises(BeyondBoundsError, match=words):
        bounded(WORK, {"do": do})


def test_what_ends_before_it_begins_is_not_the_strangers_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the system starts no more threads for a library that is imported."""
    monkeypatch.setattr(bounds, "_START", "import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    with pytest.raises(RemapError, match=r"LR511 .* ended before its work began"):
        bounded(WORK, {"do": "think"})


def test_no_process_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **named: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    with pytest.raises(RemapError, match=r"LR511 .*ulimit -u"):
        bounded(WORK, {"do": "think"})


def test_it_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="File too large"):
        bounded(WORK, {"do": "write", "path": str(tmp_path / "x")})
    assert (tmp_path / "x").read_bytes() == b""


def test_an_error_of_our_own_is_no_excess() -> None:
    with pytest.raises(RuntimeError, match="what am I to do"):
        bounded(WORK, {"do": "?"})


def test_nothing_of_the_current_folder_is_imported(tmp_path: Path) -> None:
    """Tests run in `tmp_path`."""
    for name in ("json", "importlib", "llava_remap", "jinja2", "subprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    assert bounded(WORK, {"do": "echo"}) == {"do": "echo"}


def test_templates_are_rendered_as_by_a_process_that_is_no_fork() -> None:
    """Tests render in forks of one process."""
    turns = [{"role": "user", "content": "Hello"}]
    request = {
        "template": "{{ start }}{{ messages[0].content }}{{ messages | length }}",
        "special": {"start": "<s>"},
        "conversations": [[turns, True], [[*turns, *turns], False]],
    }
    forked = bounded("llava_remap.folder.render", request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "subprocess", subprocess)
        assert bounded("llava_remap.folder.render", request) == forked
    assert forked == [{"prompt": "<s>Hello1"}, {"prompt": "<s>Hello2"}]
