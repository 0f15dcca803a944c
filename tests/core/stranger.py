"""Work for `llava_remap.core.bounded`, of the kinds that a stranger's template or an accident
can lead to.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> Any:
    match request["do"]:
        case "echo":
            return request
        case "think":
            while True:
                pass
        case "grow":
            return len(b"x" * 20_000_000_000)
        case "write":
            with Path(request["path"]).open("wb") as file:
                return file.write(b"x" * 100_000)
        case "crash":
            return ctypes.string_at(0)
        case _:
            raise ValueError("what am I to do?")
