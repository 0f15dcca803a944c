"""Files that are written whole or not at all, and problems that know their place."""

from __future__ import annotations

from io import FileIO
from pathlib import Path

import pytest

from llava_remap.core.files import replace_file, write_all, write_whole
from llava_remap.core.problem import ConfigError, Mark, Problem, RemapError, refuse


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", tmp_path / "a.partial", lambda file: write_all(file, b"new"))
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("where", ["while it is filled", "before it is renamed"])
def test_a_file_whose_writing_fails_is_not_there(where: str, tmp_path: Path) -> None:
    def fill(file: FileIO) -> None:
        write_all(file, b"half")
        if where == "while it is filled":
            raise KeyboardInterrupt

    def ready(filled: None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", tmp_path / "a.partial", fill, ready)
    assert names(tmp_path) == set()


def test_a_partial_file_of_another_job_stops_the_writing(tmp_path: Path) -> None:
    (tmp_path / "a.partial").touch()
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a", tmp_path / "a.partial", lambda file: None)


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o600)
    (tmp_path / "link").symlink_to("old")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "old").read_bytes() == b"new"
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == {"old", "link"}


def test_a_check_sees_the_new_file_and_can_keep_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")

    def check(partial: Path) -> None:
        assert partial.read_bytes() == b"new"
        raise refuse("LR201", "no.")

    with pytest.raises(RemapError):
        replace_file(tmp_path / "old", b"new", check=check)
    assert (tmp_path / "old").read_bytes() == b"old"
    assert names(tmp_path) == {"old"}


def test_a_place_stands_before_the_cause_in_messages() -> None:
    problem = Problem("LR201", "no.", "Mend it.", place=Mark("r.yaml", 3, 5))
    assert problem.placed_cause == "r.yaml:3:5 no."
    assert problem.message == f"{problem.title}: r.yaml:3:5 no. Mend it."
    assert Problem("LR201", "no.").placed_cause == "no."


def test_an_error_of_a_class_is_made_as_any_other() -> None:
    error = ConfigError.of("LR112", "no.", "Mend it.", ["b", "a"])
    assert isinstance(error, ConfigError)
    assert [problem.names for problem in error.problems] == [("b", "a")]
