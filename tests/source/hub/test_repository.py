"""What can name a repository."""

from __future__ import annotations

import pytest

from llava_remap.source.hub import Repository, parse_repository


@pytest.mark.parametrize(
    ("text", "id", "revision"),
    [
        ("liuhaotian/llava-v1.5-7b", "liuhaotian/llava-v1.5-7b", None),
        ("a/b", "a/b", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@" + "0" * 40, "org/name", "0" * 40),
    ],
)
def test_named(text: str, id: str, revision: str | None) -> None:
    assert parse_repository(text) == Repository(id, revision)
    assert str(Repository(id, revision)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "org/", "/name", "org/name/file", "./org/name", "../name", "~/name",
        "org/name@", "org/name@a b",
        "org name/x", "org/name.git", "org/na--me", "org/na..me", "org/name-", "-org/name",
        "org/name@a/../b",
        "org/name\n", "org/näme", "o/" + "n" * 95,
    ],
)  # fmt: skip
def test_not_named(text: str) -> None:
    assert parse_repository(text) is None


def test_the_longest_name() -> None:
    assert parse_repository("o/" + "n" * 94) is not None
