"""Python programs in processes of their own, without importing this package anew for each: forks of
one process that has imported it.

They have all that only a process shows: an exit code, streams, signals, limits, a peak memory. What
an import does or costs is shown by a process that isn't forked.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any

ROOT = Path(__file__).parents[1]
#: Seconds after which a process is taken to hang. No test depends on them: what ends does so long
#: before, on any machine.
HANGS = 1800
#: What runs the command line.
MAIN = "from llava_remap.cli import main; main()"
#: What nearly every command imports, which takes ten times as long as the rest of a refusal.
OF_COMMANDS = (
    "llava_remap.cli.commands",
    "llava_remap.jobs.apply",
    "llava_remap.jobs.inspect_parts",
    "llava_remap.jobs.verify",
    "llava_remap.report",
    "rich.progress",
)


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        code: the exit code; minus the signal's number where one ended it.
        kib: its peak memory, by the kernel's accounting. The process that is forked is small, as a
            process of tests isn't.
    """

    code: int
    kib: int
    out: bytes
    err: bytes

    @property
    def printed(self) -> str:
        return self.out.decode()

    @property
    def said(self) -> str:
        """What was printed on standard error."""
        return self.err.decode(errors="backslashreplace")


class Running:
    """A process that runs. One that hangs is ended.

    Attributes:
        stdin: what it is given to read; None where it is given a file of the caller's.
        stdout: what it prints; None as above.
    """

    def __init__(
        self, stdin: IO[bytes] | None, stdout: IO[bytes] | None, errors: IO[bytes], state: IO[str]
    ) -> None:
        self.stdin, self.stdout = stdin, stdout
        self._errors, self._state = errors, state
        self._ended: Ended | None = None
        self.pid = int(state.readline())

    @property
    def err(self) -> bytes:
        """What it has printed on standard error."""
        return os.pread(self._errors.fileno(), os.fstat(self._errors.fileno()).st_size, 0)

    def wait_for(self, line: str) -> None:
        """Wait until it prints a line."""
        assert self.stdout is not None
        while (found := self.stdout.readline().decode()) != line:
            assert found, self.err.decode()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ended(self, more: bytes = b"") -> Ended:
        """Give it more to read, and wait for its end."""
        if self._ended is None:
            hangs = Timer(HANGS, self.send_signal, [signal.SIGKILL])
            hangs.daemon = True
            hangs.start()
            out = b""
            if self.stdin is not None:
                with contextlib.suppress(BrokenPipeError), self.stdin:
                    self.stdin.write(more)
            if self.stdout is not None and not self.stdout.closed:
                with self.stdout:
                    out = self.stdout.read()
            with self._state:
                code, kib = json.loads(self._state.readline())
            hangs.cancel()
            self._ended = Ended(code, kib, out, self.err)
            self._errors.close()
        return self._ended

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *raised: object) -> None:
        if any(raised):
            with contextlib.suppress(ProcessLookupError):
                self.send_signal(signal.SIGKILL)
        self.ended()


class Forks:
    """A process that is forked for each program."""

    def __init__(self, *modules: str, limit: Callable[[], object] | None = None) -> None:
        """Start it.

        Args:
            modules: what it imports.
            limit: called in this process before it is Python.
        """
        self._lock = Lock()
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                preexec_fn=limit,
            )

    def start(
        self,
        program: str,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Running:
        """Start a program in the current folder, as `python -c PROGRAM ARGUMENTS` does.

        Args:
            environment: its whole environment; by default this process's.
            stdin, stdout, stderr: files of the caller's in place of pipes.
        """
        request = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(os.environ if environment is None else environment),
            "folder": os.getcwd(),  # noqa: PTH109
        }
        pipes = [os.pipe(), os.pipe(), os.pipe()]
        (read, ours_in), (ours_out, write), (ours_state, state) = pipes
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is open for as long as the process
        theirs = [
            read if stdin is None else stdin,
            write if stdout is None else stdout,
            errors.fileno() if stderr is None else stderr,
            state,
        ]
        text = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._connection, [len(text).to_bytes(8, "big")], theirs)
            self._connection.sendall(text)
        for other in (read, write, state):
            os.close(other)
        for given, own in ((stdin, ours_in), (stdout, ours_out)):
            if given is not None:
                os.close(own)
        return Running(
            os.fdopen(ours_in, "wb", buffering=0) if stdin is None else None,
            os.fdopen(ours_out, "rb") if stdout is None else None,
            errors,
            os.fdopen(ours_state),
        )

    def run(self, program: str, *arguments: object, more: bytes = b"", **named: Any) -> Ended:
        """A program from its start to its end; `more` is what it is given to read."""
        return self.start(program, *arguments, **named).ended(more)

    def close(self) -> None:
        self._connection.close()
        self._process.wait()

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def of_commands() -> Forks:
    """The process for whole commands. It ends with this one, or with the last test."""
    return Forks(*OF_COMMANDS)


def serve(connection: socket.socket) -> str:
    """Fork for each request; gives its program, in the fork.

    Raises:
        SystemExit: in the process that is forked, when there is nobody left who asks.
    """
    while True:
        head, files, _, _ = socket.recv_fds(connection, 8, 4)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0 if not head else os.WNOHANG)[0]:
                pass
        if not head:
            sys.exit()
        request = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
        if os.fork() == 0:
            connection.close()
            break
        for file in files:
            os.close(file)
    *streams, state = files
    if child := os.fork():  # this process tells of the child's end
        for file in streams:
            os.close(file)
        os.write(state, f"{child}\n".encode())
        _, status, usage = os.wait4(child, 0)
        answer = [os.waitstatus_to_exitcode(status), usage.ru_maxrss]
        os.write(state, json.dumps(answer).encode())
        os._exit(0)
    os.close(state)
    for stream, file in enumerate(streams):
        os.dup2(file, stream)
        os.close(file)
    # New ones: those of the process that was forked know other files.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", buffering=1, closefd=False)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv, sys.path[0] = ["-c", *request["arguments"]], ""
    return str(request["program"])


if __name__ == "__main__":
    for name in sys.argv[2:]:
        import_module(name)
    gc.freeze()
    exec(serve(socket.socket(fileno=int(sys.argv[1]))), {"__name__": "__main__"})
