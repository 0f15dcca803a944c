"""Where an output may lie, and where it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import CLIP, RELEASED, Changed, Run


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
def test_outputs_that_cannot_be(name: str, run: Run) -> None:
    Path("file").write_text("a file")
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        name,
        "--dry-run",
    )
    assert ran.code == 4
    assert "LR508" in ran.out


def test_sources_are_never_written_to(run: Run, changed: Changed) -> None:
    source = changed()
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source,
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        source / "out",
    )
    assert ran.code == 4
    assert "is inside source `model`" in ran.out
    assert not (source / "out").exists()


@pytest.mark.parametrize("leads_to", ["link", "nowhere"])
def test_an_output_that_is_a_link_to_nothing(leads_to: str, run: Run) -> None:
    Path("link").symlink_to(leads_to)
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
    )
    ran = run(*command, "link", "--dry-run")
    assert (ran.code, "LR503" in ran.out) == (4, True)
    assert run(*command, "link/below").code == 4
    assert Path("link").is_symlink()


def test_home_in_an_output(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a source: a shell leaves the tilde of `--output=~/out` as it is, and a folder `~`
    here is nobody's wish.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    command = (
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--verify",
        "none",
    )
    assert run(*command, "--output=~/out").code == 0
    assert (tmp_path / "home" / "out" / "config.json").is_file()
    ran = run(*command, "--output=~no-such-user/out")
    assert (ran.code, "LR211" in ran.err) == (2, True)
    assert not Path("~").exists()


def test_a_file_given_alone_can_have_its_output_beside_it(run: Run, changed: Changed) -> None:
    source = changed()
    ran = run(
        "apply",
        "llava-v1.5",
        "--source",
        source / "model.safetensors",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        source / "out",
    )
    assert ran.code == 0
