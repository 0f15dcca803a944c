"""A temporary folder for files that libraries open by name; nothing else is written outside the
output.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_remap.core.limits import UNWRITTEN
from llava_remap.core.problem import RemapError, refuse

#: Reading has its own words for its errors, and libraries have theirs.
_UNWRITTEN = (*UNWRITTEN, errno.EACCES)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that exists while the block runs.

    Raises:
        RemapError: LR508 where it can't be made, or where a file in it can't be written.
    """
    try:
        scratch = tempfile.TemporaryDirectory()
    except OSError as error:
        raise _unwritten(error) from None
    with scratch as name:
        try:
            yield Path(name)
        except OSError as error:
            if error.errno in _UNWRITTEN:
                raise _unwritten(error) from None
            raise


def _unwritten(error: OSError) -> RemapError:
    where = tempfile.tempdir or "a folder for temporary files"
    return refuse(
        "LR508",
        f"config, tokenizer and processor are tried in {where} first, and nothing can be "
        f"written there: {error.strerror}.",
        "Set TMPDIR to a folder with room; see `ulimit -f`, too.",
    )
