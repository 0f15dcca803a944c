"""Whether a file is there, and whose it is.

A name that is there and can't be read as a file is an error, never an absent file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: What the system says of a name that nothing has, or that nothing can have.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def is_regular_file(path: Path) -> bool:
    """Whether a regular file that can be read is at `path`, links followed; False only where
    nothing has this name.

    Raises:
        OSError: for a link to nowhere or in a circle, for what isn't a file, and for a file that
            mustn't be read; `filename` and `strerror` say it in words.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind == stat.S_IFREG:
            os.close(
                os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            )  # a pipe put there meanwhile must not stop us
            return True
    except ValueError:  # a zero byte in the name
        return False
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        if not os.path.islink(path):  # noqa: PTH114 - that of `Path` fails on a name that is too long
            return False
        raise OSError(
            error.errno, f"it is a link to {path.readlink()}, where nothing is", str(path)
        ) from None
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "it is a folder where a file should be", str(path))
    raise OSError(
        errno.EINVAL,
        f"it is {_KINDS.get(kind, 'something')}, neither a file nor a folder",
        str(path),
    )


def is_foreign(status: os.stat_result) -> bool:
    """Whether somebody else owns a file or folder, or may write to it."""
    return status.st_uid != os.geteuid() or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
