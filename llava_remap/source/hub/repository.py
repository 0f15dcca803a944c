"""Parses a repository of the hub: `ORG/NAME` or `ORG/NAME@REVISION`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(
    rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII
)
#: A repository's folder in a hub's cache.
_CACHED = re.compile(
    rf"(?:^|[/\\])models--(?P<owner>{_PART}?)--(?P<name>{_PART})(?:[/\\]|$)", re.ASCII
)
#: Characters; the hub's own limit for `ORG/NAME`.
_LONGEST = 96


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository of the hub.

    Attributes:
        id: `ORG/NAME`.
        revision: a branch, a tag or a commit as given; None for the main branch.
    """

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def parse_repository(text: str) -> Repository | None:
    """The repository that `text` names; None if it can't name one. A path may look the same, so
    callers check for a path first.

    >>> parse_repository("liuhaotian/llava-v1.5-7b@main")
    Repository(id='liuhaotian/llava-v1.5-7b', revision='main')
    >>> parse_repository("./llava-v1.5-7b")
    """
    match = _REPOSITORY.fullmatch(text)
    if match is None or len(match["id"]) > _LONGEST or match["id"].endswith(".git"):
        return None
    # The hub allows neither `--` nor `..` in a name, and git no `..` in a revision.
    if "--" in match["id"] or ".." in text:
        return None
    return Repository(match["id"], match["revision"])


def repository_of_cache(path: str) -> str | None:
    """The hub id of a repository, from a path into its folder in any machine's hub cache; None for
    any other path.

    >>>
    repository_of_cache("/root/.cache/huggingface/hub/models--openai--clip-vit-large-patch14/snapshots/32bd640")
    'openai/clip-vit-large-patch14'
    """
    match = _CACHED.search(path)
    return f"{match['owner']}/{match['name']}" if match is not None else None
