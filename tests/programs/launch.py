"""`python launch.py SCRIPT ARGUMENT…` runs a script in which torchvision can be imported.

The wheel of torchvision on the package index is built for a torch with CUDA. Beside a CPU build
its binary does not load, and the import fails at the first operator that the binary would have
registered. Resizing and normalizing use torch's own operators, so declaring the missing ones by
name is enough. A torchvision that imports is left alone.
"""

from __future__ import annotations

import re
import runpy
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: Declared operators disappear with the library that declares them.
_declared: list[object] = []


def declare_operators() -> None:
    """Declare the operators without which `import torchvision` fails, one after another."""
    while True:
        try:
            import_module("torchvision")
        except RuntimeError as error:
            absent = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not absent:
                raise
            from torch.library import Library

            library: Any = Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            library.define(f"{absent[1]}() -> ()")
            _declared.append(library)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            return


if __name__ == "__main__":
    if find_spec("torchvision"):
        declare_operators()
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
