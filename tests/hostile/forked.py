"""Runs the command line in processes of their own, without importing it anew for each.

Reads a JSON list of arguments a line, and answers each with a line of JSON: exit code (minus the signal's number where one ended
it), peak memory in KiB by the kernel's accounting, and what it printed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
from typing import Any

#: Seconds of CPU, and of the clock, before the kernel ends it.
CPU, CLOCK = 30, 120


def main() -> None:
    import llava_remap.apply
    import llava_remap.identify
    import llava_remap.reverse  # noqa: F401
    from llava_remap.cli import main as run

    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line), run)), flush=True)


def _forked(arguments: list[str], run: Any) -> dict[str, object]:
    import signal

    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
            signal.alarm(CLOCK)
            sys.argv = ["llava-remap", *arguments]
            try:
                run()
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
            except BaseException:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(99)
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        out.seek(0)
        text = out.read().decode("utf-8", "replace")
    return {"code": os.waitstatus_to_exitcode(status), "kib": usage.ru_maxrss, "out": text}


if __name__ == "__main__":
    main()
