"""Checks a repository's folder in the hub's cache before it is used: anybody may have put something
there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from llava_remap.checkpoint import LARGEST
from llava_remap.core import RemapError, quoted
from llava_remap.source.hub.guard import COMMIT, SHA256
from llava_remap.source.hub.refusal import HubError
from llava_remap.source.hub.repository import Repository


def repository_folder(repository: Repository) -> Path:
    """The library's folder for the repository. It need not exist."""
    return _cache() / f"models--{repository.id.replace('/', '--')}"


def snapshot_folder(repository: Repository, commit: str) -> Path:
    return repository_folder(repository) / "snapshots" / commit


def check_cache(repository: Repository, name: str) -> None:
    """Refuse anything that leads the library, or us, out of the cache: links, and listings that
    give the library names of files.

    Args:
        name: the source that the repository is for.

    Raises:
        RemapError: LR114.
    """
    folder, root = repository_folder(repository), Path(os.path.realpath(_cache()))
    locks = _cache() / ".locks"
    for path in (*_all(folder), *([locks] if locks.is_symlink() else _all(locks / folder.name))):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            if not (leads := Path(os.path.realpath(path))).is_relative_to(root):
                raise _refused(repository, name, path, f"is a link out of the cache, to {leads}")
        elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise _refused(repository, name, path, "is neither a file nor a folder")
        elif path.parent == folder / "trees" and not _is_sound(path):
            raise _refused(repository, name, path, "lists a file without a hash")


def check_noted(repository: Repository, name: str) -> None:
    """Refuse a note of a branch's commit that doesn't hold a commit: the library uses the note as a
    folder's name.

    Raises:
        RemapError: LR114; OSError if the note can't be read.
    """
    note = repository_folder(repository) / "refs" / (repository.revision or "main")
    if note.is_file():
        with note.open("rb") as file:
            commit = file.read(100).decode("latin-1")
        if not COMMIT.fullmatch(commit):
            raise _refused(repository, name, note, f"holds {quoted(commit)}, which isn't a commit")


def check_inside(repository: Repository, name: str, path: Path) -> None:
    """Refuse a file that doesn't lie in the cache after all links are followed.

    Raises:
        RemapError: LR114.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(_cache())):
        raise _refused(repository, name, path, "isn't inside the cache")


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def _all(top: Path) -> Iterator[Path]:
    """A folder and everything in it, without following links; nothing if it doesn't exist."""
    if os.path.lexists(top):
        yield top
    if not top.is_symlink():
        for folder, folders, files in os.walk(top):
            yield from (Path(folder, entry) for entry in (*folders, *files))


def _is_sound(listing: Path) -> bool:
    """Whether all hashes in a listing of the library are hashes. An unreadable listing is sound,
    since the library replaces it.
    """
    try:
        files = (
            json.loads(listing.read_bytes())["files"].values()
            if listing.stat().st_size <= LARGEST
            else [{"lfs_sha256": 0}]
        )
        digests = [file.get("lfs_sha256") for file in files]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return True
    return all(
        digest is None or (isinstance(digest, str) and SHA256.fullmatch(digest))
        for digest in digests
    )


def _refused(repository: Repository, name: str, path: Path, what: str) -> RemapError:
    return HubError.of(
        "LR114",
        f"{quoted(str(repository))} isn't taken from the hub's cache: {path} {what}.",
        "Delete it, and the needed files are downloaded again. Or give a folder that you trust: "
        f"--source {name}=DIR.",
    )
