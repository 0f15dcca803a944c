"""The command line: arguments in, exit code out. Everything else is elsewhere and imported when a command runs."""

from __future__ import annotations

import os
import sys

from llava_remap.cli.commands import app


def main() -> None:
    """Entry point of the console script. No traceback reaches the user, unless LLAVA_REMAP_TRACEBACK is set."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was left behind.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("LLAVA_REMAP_TRACEBACK"):
            raise
        print(
            f"Internal error: {type(error).__name__}: {error}\nPlease report it, with what LLAVA_REMAP_TRACEBACK=1 shows. "
            "Nothing was left behind.",
            file=sys.stderr,
        )
        sys.exit(1)


__all__ = ["app", "main"]
