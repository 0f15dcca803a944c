"""Downloads the files of a repository that a job needs, all of one commit, into the hub's cache."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Set
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

from llava_remap.checkpoint import (
    ADAPTER_CONFIG,
    AbsentError,
    Form,
    Listing,
    choose_form,
    explain_folder,
    files_for,
    no_form,
    read_weight_map,
    shards_beside,
    whole_states,
)
from llava_remap.core import RemapError, quoted, refuse, several
from llava_remap.core.escaped import raw
from llava_remap.core.threads import result
from llava_remap.source.hub.cache_folder import (
    check_cache,
    check_inside,
    check_noted,
    snapshot_folder,
)
from llava_remap.source.hub.guard import COMMIT, guarded
from llava_remap.source.hub.refusal import explain, not_cached
from llava_remap.source.hub.repository import Repository

#: Seconds until the hub counts as unreachable. By default, `model_info` would wait for ever.
_TIMEOUT = 10


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one commit of a repository.

    Attributes:
        folder: their folder in the hub's cache. Other files of the commit may lie there, too.
        id: `ORG/NAME`.
        commit: the full hash.
        files: the names of the requested files.
        cached: whether only the cache was used, so that the hub may have a newer commit.
    """

    folder: Path
    id: str
    commit: str
    files: tuple[str, ...]
    cached: bool


#: What `download` has returned within `downloading_once`, by its arguments.
_ANSWERS: ContextVar[dict[tuple[Repository, frozenset[str], bool], Snapshot] | None] = ContextVar(
    "_ANSWERS", default=None
)


def download(
    repository: Repository, use: Collection[str], *, name: str, offline: bool = False
) -> Snapshot:
    """The files of `repository` that are needed, downloaded unless they are in the hub's cache.

    One form of the weights is taken, chosen as in a folder (`choose_form`). The config is always
    among the files. If the hub is unreachable, the cache is used if it has the needed files. The
    environment variables of `huggingface_hub` apply: HF_TOKEN, HF_ENDPOINT, HF_HOME,
    HF_HUB_OFFLINE.

    Args:
        use: some of `tensors`, `config`, `tokenizer`, `processor`.
        name: the source's name, for messages with `--source NAME=DIR`.
        offline: whether to use only the cache.

    Raises:
        RemapError: LR100 for a repository without weights, LR103 for an index that disagrees with
            the repository, LR114 if the hub can't give the files or gives unsound answers, or if
            something leads out of the cache; LR502 for a full disk.
    """
    asked = (repository, frozenset(use), offline)
    answers = _ANSWERS.get()
    if answers is not None and asked in answers:
        return answers[asked]
    snapshot = _download(repository, use, name, offline)
    if answers is not None:
        answers[asked] = snapshot
    return snapshot


@contextmanager
def downloading_once() -> Iterator[None]:
    """Within the block, `download` asks the hub only once for the same files, and then returns the
    same snapshot.
    """
    token = _ANSWERS.set({})
    try:
        yield
    finally:
        _ANSWERS.reset(token)


def _download(repository: Repository, use: Collection[str], name: str, offline: bool) -> Snapshot:
    if offline:
        return _from_cache(repository, use, name)
    check_cache(repository, name)
    try:
        return _interruptible(lambda: _from_hub(repository, use, name))
    except RemapError:
        raise
    except Exception as error:
        # An error of the library or of its HTTP library (version 2 has another one), or any error
        # that an odd answer causes in them.
        refusal, may_be_cached = explain(error, repository, name)
        if not may_be_cached:
            raise refusal from None
        return _from_cache(repository, use, name, refusal.problems[0].cause)


def _interruptible(call: Callable[[], Snapshot]) -> Snapshot:
    """The result of a call, which runs in a separate thread.

    The library downloads several files at a time, and waits for all of them before it raises an
    exception, even after Ctrl-C.
    """
    answer: Future[Snapshot] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result(answer)


def _from_hub(repository: Repository, use: Collection[str], name: str) -> Snapshot:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    with _quiet(bars=False), guarded():
        info = HfApi().model_info(repository.id, revision=repository.revision, timeout=_TIMEOUT)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit):
            raise ValueError("the answer names no commit")

        def fetch(file: str) -> Path:
            hf_hub_download(repository.id, file, revision=commit)
            # The path from the file's name, not the path that the library returns.
            return snapshot_folder(repository, commit) / file

        beside = [file for file in files_for(use) if file in there]
        # This notes the revision's commit and files in the cache, for jobs without a network. If
        # the branch has moved just now, only the note is of another commit.
        snapshot_download(
            repository.id, revision=repository.revision, allow_patterns=_literally(beside)
        )
        try:
            weights = _weights(there, fetch) if "tensors" in use else []
        except RemapError as error:  # an error of an index
            raise type(error)(
                replace(p, cause=f"of {quoted(str(repository))}: {p.cause}") for p in error.problems
            ) from None
    if weights is None:
        if foreign := explain_folder(
            Listing.of_repository(repository.id, repository.revision, there)
        ):
            raise foreign
        (problem,) = no_form(
            str(repository), _top(there), {file.partition("/")[0] for file in there}
        ).problems
        raise RemapError(
            replace(
                problem,
                fix="Give a repository with weights, or download the right file and give it: "
                f"--source {name}=FILE.",
            )
        )
    if absent := [file for file in weights if file not in there]:
        raise refuse(
            "LR103",
            f"{len(absent)} of the {len(weights)} weight files of {quoted(str(repository))} are "
            f"missing: {several(absent)}.",
            f"Give a complete revision (--source {name}={repository.id}@REVISION) or another "
            "repository.",
        )
    files = sorted({*beside, *weights})
    if not files:
        raise AbsentError.of(
            "LR100",
            f"{quoted(str(repository))} has none of the needed files: {', '.join(sorted(use))}.",
            "Give another repository, or a local folder.",
        )
    with (
        _quiet(bars=sys.stderr.isatty()),
        guarded(),
        redirect_stderr(raw(sys.stderr)),
    ):  # bars are drawn
        for file in files:
            path = fetch(file)
            check_inside(repository, name, path)
            if not path.is_file():
                raise ValueError(f"{file} isn't at the place of its download")
    return Snapshot(
        snapshot_folder(repository, commit), repository.id, commit, tuple(files), cached=False
    )


def _from_cache(
    repository: Repository, use: Collection[str], name: str, why: str | None = None
) -> Snapshot:
    """Like `_from_hub`, from the cache alone. `why`: why the hub can't give the files."""
    from huggingface_hub import snapshot_download

    beside, revision = files_for(use), repository.revision
    check_cache(repository, name)
    try:
        check_noted(repository, name)
        with _quiet(bars=False):
            snapshot = snapshot_download(
                repository.id,
                revision=revision,
                allow_patterns=_literally(beside),
                local_files_only=True,
            )
        folder = snapshot_folder(repository, Path(snapshot).name)
        # Broken links are included: an existing name isn't absent.
        paths = (Path(above, file) for above, _, files in os.walk(folder) for file in files)
        there = {path.relative_to(folder).as_posix() for path in paths}
        weights = _weights(there, lambda file: folder / file) if "tensors" in use else []
    except OSError as error:  # the library's LocalEntryNotFoundError is one too
        raise not_cached(repository, name, why, error) from None
    files = [file for file in beside if file in there]
    if weights is None or not (files or weights):
        raise not_cached(repository, name, why)
    files = sorted({*files, *weights})
    if absent := [file for file in files if not (folder / file).is_file()]:
        raise not_cached(repository, name, why, lacking=absent)
    return Snapshot(folder, repository.id, folder.name, tuple(files), cached=True)


def _weights(there: Set[str], fetch: Callable[[str], Path]) -> list[str] | None:
    """The files of the form to read; None if there is none.

    Args:
        there: the names of the existing files. Returned files may be absent.
        fetch: returns an index as a local file.
    """
    # An adapter needs its config, and so does its refusal, even without weights.
    adapter = [ADAPTER_CONFIG] if ADAPTER_CONFIG in there else []
    form = choose_form(_top(there))
    if form is None and (states := whole_states(Listing("", frozenset(there), Path()))):
        form = Form((states,))
    if form is None:
        return adapter or None
    if form.is_index:
        named = shards_beside(read_weight_map(fetch(form.file)), lambda name: name in there)
        return [form.file, *sorted(set(named.values())), *adapter]
    return [*form.files, *form.missing, *adapter]


def _top(there: Set[str]) -> Set[str]:
    return {file for file in there if "/" not in file}


def _literally(files: Collection[str]) -> list[str]:
    """Patterns that match these names and no others."""
    return [glob.escape(file) for file in files]


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Silence the library's log and warnings, since exceptions have its errors. Progress bars are
    shown only if `bars`.
    """
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    verbosity, hidden = logging.get_verbosity(), are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        if not bars:
            disable_progress_bars()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if not hidden:
                enable_progress_bars()
