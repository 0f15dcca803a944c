"""Explains why a download from the hub failed: one message for each cause, with advice."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from llava_remap.checkpoint import AbsentError
from llava_remap.core import RemapError, quote, quoted, refuse, several
from llava_remap.source.hub.guard import BadAnswerError
from llava_remap.source.hub.repository import Repository

_LOG_IN = "log in: `hf auth login`, or set HF_TOKEN"
#: Errors of creating a file, apart from a full disk.
_UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)


class HubError(AbsentError):
    """A repository is neither available from the hub nor in its cache."""


def explain(error: Exception, repository: Repository, name: str) -> tuple[RemapError, bool]:
    """Explain an error of the download of `repository`.

    Returns:
        the refusal, and whether the hub was only unreachable, so that the cache may be used.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub, text = HfApi().endpoint, quoted(str(repository))
    elsewhere = _elsewhere(repository, name)
    if bad := next((each for each in _chain(error) if isinstance(each, BadAnswerError)), None):
        return HubError.of(
            "LR114",
            f"{text} can't be downloaded: {hub} {bad}.",
            f"Check the value of HF_ENDPOINT, and who runs that server. {elsewhere}",
        ), False
    if local := _of_the_disk(error):
        return local, False
    error = next((each for each in _chain(error) if isinstance(each, HfHubHTTPError)), error)
    if isinstance(error, RevisionNotFoundError):
        return HubError.of(
            "LR114",
            f"{quoted(repository.id)} has no revision {quoted(repository.revision or 'main')}.",
            "Give a branch, tag or commit of the repository: --source "
            f"{name}={repository.id}@REVISION.",
        ), False
    if isinstance(error, GatedRepoError):
        return HubError.of(
            "LR114",
            f"{text} is gated: only users who accepted its licence may download it.",
            f"Accept its licence on {hub}/{repository.id} and {_LOG_IN}.",
        ), False
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if isinstance(error, RepositoryNotFoundError) or status == 401:
            return HubError.of(
                "LR114",
                f"{text} doesn't exist on {hub}, or it is private.",
                f"Check its name. If it is private, {_LOG_IN}. Give a local folder as --source "
                f"{name}=DIR.",
            ), False
        says = _line(error.server_message or error.response.reason_phrase)
        return HubError.of(
            "LR114",
            f"{text} can't be downloaded: {hub} answers {status}, {says}.",
            elsewhere,
        ), status >= 500 or status in (408, 429)
    # By name, since the classes are httpx's or httpx2's, depending on the library's version.
    kinds = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return HubError.of(
            "LR114",
            f"{text} can't be downloaded: HF_HUB_OFFLINE is set.",
            elsewhere,
        ), True
    reason = _line(next((each for each in _chain(error) if str(each)), error))
    what = (
        "no connection to"
        if kinds & {"ConnectError", "TimeoutException", "ProxyError"}
        else "no usable answer from"
    )
    return HubError.of(
        "LR114",
        f"{text} can't be downloaded: {what} {hub}: {reason}.",
        elsewhere,
    ), True


def not_cached(
    repository: Repository,
    name: str,
    why: str | None,
    error: Exception | None = None,
    lacking: Sequence[str] = (),
) -> RemapError:
    """LR114 for files that the cache lacks, too.

    Args:
        why: why the hub can't give the files; None if the hub must not be asked.
        error: the library's error, if it raised one.
        lacking: the missing files, if they are known.
    """
    why = why or f"{quoted(str(repository))} can't be downloaded in a job without a network."
    cause = "The hub's cache doesn't have it" + (" whole" if error is None else "")
    if lacking:
        cause = f"The hub's cache lacks its {several(lacking)}"
    elif isinstance(error, OSError) and error.errno is not None:
        cause = f"The hub's cache can't be read: {_line(error)}"
    elif hasattr(error, "snapshot_path"):  # newer versions of the library say what is missing
        cause = f"The hub's cache has it incompletely: {_line(error)}"
    return HubError.of("LR114", f"{why} {cause}.", _elsewhere(repository, name))


def _elsewhere(repository: Repository, name: str) -> str:
    folder = repository.id.rpartition("/")[2]
    revision = f" --revision {quote(repository.revision)}" if repository.revision else ""
    return (
        f"Give its folder: --source {name}=DIR. To download it on a machine with a network: "
        f"hf download {repository.id}{revision} --local-dir {folder}"
    )


def _of_the_disk(error: Exception) -> RemapError | None:
    for each in _chain(error):
        number, file = (each.errno, each.filename) if isinstance(each, OSError) else (None, None)
        # The library's downloader in Rust wraps the system's message in a RuntimeError.
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(each):
            return refuse(
                "LR502",
                "the disk with the hub's cache is full.",
                "Free some space, or set HF_HOME to a folder on a larger disk.",
            )
        if file and number in _UNWRITABLE:  # the error of a forbidden connection has no file
            return HubError.of(
                "LR114",
                f"the hub's cache can't be written: {_line(each)}.",
                "Set HF_HOME to a folder that you may write to.",
            )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and the chain of its causes."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = each.__cause__ or each.__context__


def _line(text: object) -> str:
    """The first line of a foreign message: short, harmless to a terminal, without a full stop."""
    lines = str(text).split("\n")
    first = next((line.strip() for line in lines if line.strip()), type(text).__name__)
    if not first.isprintable():
        first = first.encode("unicode_escape").decode("ascii")
    return (first if len(first) <= 200 else first[:197] + "...").rstrip(".")
