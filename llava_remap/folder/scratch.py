"""Small files: written as transformers writes them, tried in a temporary folder, and opened without
running code of the folder.
"""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_remap.core.limits import UNWRITTEN
from llava_remap.core.problem import RemapError, refuse

#: Arguments for opening a folder that others wrote: transformers uses no network, runs none of the
#: folder's own code, and doesn't ask the user whether to run it.
AS_DATA: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
#: Errors of writing. Errors of reading and of libraries have their own messages.
_UNWRITTEN = (*UNWRITTEN, errno.EACCES)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """JSON as transformers writes it: two spaces, a newline at the end, no escaped letters."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_bytes(json_bytes(content))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that exists while the block runs, for files that libraries open by name. Nothing
    else is written outside the output.

    Raises:
        RemapError: LR508 if the folder can't be made, or a file in it can't be written.
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
        f"config, tokenizer and processor are tried in {where} first, but nothing can be written "
        f"there: {error.strerror}.",
        "Set TMPDIR to a folder with room; see `ulimit -f`, too.",
    )


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of the tokenizers library's Rust code, which is no `Exception`, into a
    `ValueError`.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as panic:
        raise ValueError(str(panic)) from panic
