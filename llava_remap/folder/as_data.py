"""How a folder that others wrote is opened with transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

#: Nothing from the network, none of the folder's own code, and no question to the user whether to
#: run it.
AS_DATA: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """What the tokenizers library raises where its Rust code gives up is no `Exception`."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as panic:
        raise ValueError(str(panic)) from panic


def one_line(error: BaseException) -> str:
    """What an error of a library says, for a message: one line, at most 300 characters, without
    a full stop.
    """
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
