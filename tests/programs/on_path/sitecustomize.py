"""Lets torchvision be imported beside a torch without CUDA. Every Python with this folder on its
path reads this file as it starts; so do the processes that a program starts itself.

The wheel of torchvision on the package index is built for a torch with CUDA. Beside a CPU build
its binary does not load, and the import fails where it describes the first operator that the binary
would have registered. Resizing and normalizing use torch's own operators, so declaring the missing
ones by name is enough. A torchvision whose binary loads is left alone.
"""

from __future__ import annotations

import ctypes
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

#: Declared operators disappear with the library that declares them.
_declared: list[object] = []


class _Declaring(MetaPathFinder):
    """Finds nothing itself: declares operators when torchvision is about to be imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision" and not _declared:
            _declared.append(None)
            spec = PathFinder.find_spec(name)
            if spec and spec.origin:
                declare_operators(Path(spec.origin).parent)


def declare_operators(package: Path) -> None:
    """Declare all operators that a torchvision describes, if its binary does not load."""
    from torch import library

    try:
        ctypes.CDLL(str(package / "_C.so"))
    except OSError:
        described = (package / "_meta_registrations.py").read_text()
        declared: Any = library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in re.findall(r'register_fake\("torchvision::(\w+)"\)', described):
            declared.define(f"{operator}() -> ()")
        _declared.append(declared)


sys.meta_path.insert(0, _Declaring())
