"""`python run_scripts.py COMMANDS.json CODES.json` runs Python scripts, one after another.

Most of a short conversion's time goes into importing torch and transformers. They are imported
once here, and each script runs in a fork: it sees the arguments, the folder and the clean state of
a command of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

SHARED = ("numpy", "torch", "transformers", "safetensors.torch", "sentencepiece")


def run(command: dict[str, Any]) -> int:
    """Run one script; its exit code.

    Args:
        command: `arguments`, of which the first one is the script; `log`, the file for what it
            prints.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = command["arguments"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(given: Path, answered: Path) -> None:
    for name in SHARED:
        importlib.import_module(name)
    codes = [run(command) for command in json.loads(given.read_text())]
    answered.write_text(json.dumps(codes))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
