"""Libraries that don't work, Python without docstrings or assertions, no room for imports, and
readers that go away.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from llava_remap.core import limits
from llava_remap.core.libraries import check_libraries, imported
from llava_remap.core.problem import RemapError
from tests.conftest import CLIP, RELEASED, Run, beside_progress
from tests.forks import MAIN, of_commands

COMMAND = Path(sys.executable).with_name("llava-remap")
JOB = (
    "apply",
    "llava-v1.5",
    "--source",
    str(RELEASED / "sharded"),
    "--source",
    f"vision_tower={CLIP}",
    "--output",
    "out",
)


def ran(
    *arguments: str, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a cache of its own that is empty at first."""
    own = {**os.environ, "LLAVA_REMAP_CACHE": str(Path("cache").resolve()), **environment}
    return subprocess.run(
        [COMMAND, *arguments], env=own, capture_output=True, text=True, check=False,
        preexec_fn=before
    )  # fmt: skip


#: Run `JOB` where the modules of a folder, the first argument, come before all others. Of the
#: libraries that models are asked with none is there yet.
BEFORE_OTHERS = f"""
import sys
sys.path.insert(0, sys.argv.pop(1))
asked = {{"torch", "transformers", "tokenizers", "sentencepiece", "PIL", "jinja2"}}
assert not asked & {{*sys.modules}}
{MAIN}
"""


def forked(broken: Path) -> tuple[int, str]:
    """The exit code of `JOB` with an empty cache, and what it prints on standard error."""
    environment = {
        **os.environ,
        "LLAVA_REMAP_CACHE": str(Path("cache").resolve()),
        "PYDANTIC_DISABLE_PLUGINS": "__all__",
    }
    ended = of_commands().run(BEFORE_OTHERS, broken, *JOB, environment=environment)
    return ended.code, ended.said


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder for broken libraries. The torch in it is empty: `JOB` imports torch first and
    doesn't use it before the other libraries are imported.
    """
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "torch.py").write_text("")
    return folder


@pytest.fixture
def warm(run: Run) -> str:
    """The cache of this run, with all that `JOB` asks of libraries."""
    assert run(*JOB[:-1], "warm").code == 0
    return os.environ["LLAVA_REMAP_CACHE"]


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_told(said: str, text: str, package: str) -> None:
    """Neither the checkpoint nor llava-remap is blamed, and nothing is written. No package is
    advised that nobody has heard of: with the name of a missing module it may be a stranger's.
    """
    assert "LR510" in said
    assert package in said
    assert f"-m pip install --force-reinstall {package}`" in said
    cause = text.rpartition("'")[0].rpartition("'")[2] or {
        "1 / 0": "division", "raise SystemExit(0)": "SystemExit: 0"
    }.get(text, "not_there")  # fmt: skip
    assert cause in said
    assert "Traceback" not in said
    assert "config.json" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("module", "text", "package"),
    [
        ("rich", "raise SystemExit(0)", "rich"),
        ("typer", "import tokenizers.not_there", "tokenizers"),
        ("numpy", "raise ImportError('numpy.core.multiarray failed to import')", "numpy"),
        ("pydantic", "raise ImportError('pydantic-core')", "pydantic"),
        ("yaml", "import not_there", "PyYAML"),
    ],
)
def test_a_library_that_can_not_be_imported_at_the_start(
    module: str, text: str, package: str, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{module}.py").write_text(text)
    found = ran(*JOB, PYTHONPATH=str(tmp_path / "broken"))
    assert found.returncode == 5, found.stderr
    assert_told(found.stderr, text, package)


@pytest.mark.parametrize(
    ("module", "text", "package"),
    [
        ("torch", "raise ImportError('libcudart.so.12: cannot open shared object file')", "torch"),
        ("torch", "raise OSError('libtorch_cpu.so: cannot open shared object file')", "torch"),
        (
            "transformers",
            "raise ImportError('cannot import name X from huggingface_hub')",
            "transformers",
        ),
        ("transformers", "raise RuntimeError('compiled for another version')", "transformers"),
        ("transformers", "import not_there", "transformers"),
        ("torch", "raise SystemExit(0)", "torch"),
        ("tokenizers", "1 / 0", "tokenizers"),
        ("sentencepiece", "raise AttributeError('odd')", "sentencepiece"),
        ("PIL", "raise ImportError('libjpeg.so.62')", "pillow"),
        ("jinja2", "raise SyntaxError('odd')", "Jinja2"),
    ],
)
def test_a_library_that_can_not_be_imported_when_it_is_asked(
    module: str, text: str, package: str, broken: Path
) -> None:
    (broken / f"{module}.py").write_text(text)
    code, said = forked(broken)
    assert code == 5, said
    assert_told(said, text, package)


def test_a_library_that_fails_when_it_is_called(warm: str, tmp_path: Path) -> None:
    """It may be damaged, or llava-remap may have called it wrongly: both are said, and the
    library is named.
    """
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "xxhash.py").write_text(
        "def xxh3_128(*data):\n    raise AttributeError('odd')\n"
    )
    found = ran(*JOB, PYTHONPATH=str(tmp_path / "broken"), LLAVA_REMAP_CACHE=warm)
    assert (found.returncode, "Traceback" in found.stderr) == (70, False), found.stderr
    assert "Internal error: AttributeError: odd" in found.stderr
    assert f"It came from xxhash {version('xxhash')}, which llava-remap called." in found.stderr
    assert "-m pip install --force-reinstall xxhash` repairs it" in found.stderr
    assert not Path("out").exists()


def test_a_library_without_what_is_imported_from_it(warm: str, broken: Path) -> None:
    (broken / "torch.py").unlink()
    (broken / "sentencepiece.py").write_text("")
    found = ran(*JOB, PYTHONPATH=str(broken), LLAVA_REMAP_CACHE=warm)
    assert found.returncode == 5, found.stderr
    assert_told(found.stderr, "'SentencePieceProcessor'", "sentencepiece")


def test_a_library_that_fails_at_what_it_can_always_do(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is blamed for it."""

    def odd(**named: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("sentencepiece.SentencePieceProcessor", odd)
    found = run(*JOB)
    said = " ".join((found.out + found.err).split())
    assert (found.code, "LR510" in said, "tokenizer.model" in said) == (5, True, False), said
    assert f"sentencepiece {version('sentencepiece')} doesn't work: RuntimeError: odd." in said


@pytest.mark.parametrize(
    ("module", "name", "package"),
    [
        ("jinja2.Template", "render", "Jinja2"),
        ("PIL.Image", "new", "pillow"),
        ("sentencepiece", "SentencePieceProcessor", "sentencepiece"),
        ("tokenizers.models", "WordLevel", "tokenizers"),
        ("torch", "empty", "torch"),
        ("transformers.LlavaForConditionalGeneration", "__init__", "transformers"),
    ],
)
def test_each_library_has_its_task(
    module: str, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_libraries()

    def odd(*arguments: object, **named: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(f"{module}.{name}", odd)
    with pytest.raises(RemapError, match=f"LR510 .*{package}.* doesn't work: KeyError: 'odd'"):
        check_libraries()


def test_verify_does_not_blame_the_folder_for_a_library(tmp_path: Path, run: Run) -> None:
    assert run(*JOB).code == 0
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so')")
    environment = {**os.environ, "LLAVA_REMAP_CACHE": str(tmp_path / "other")}
    found = of_commands().run(
        BEFORE_OTHERS, tmp_path / "broken", "verify", "out", environment=environment
    )
    assert (found.code, "LR510" in found.said, "LR60" in found.said) == (
        5,
        True,
        False,
    ), found.said


@pytest.mark.parametrize(
    ("module", "library"), [("yaml", "yaml"), ("llava_remap.core.problem", None)]
)
def test_a_name_that_cannot_be_imported(module: str, library: str | None) -> None:
    """The library without the name is the one told, whoever imports it. What this package misses
    is no library's fault.
    """
    with pytest.raises(ImportError) as caught:
        exec(f"from {module} import no_such_name")
    assert imported(caught.value) == library


def test_a_fault_of_our_own_in_pythons_library() -> None:
    """No package is advised: there is none, or it is a stranger's."""
    with pytest.raises(AttributeError) as caught:
        os.no_such_name  # type: ignore[attr-defined]  # noqa: B018
    assert imported(caught.value) is None


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_a_signal_during_an_import(module: str, broken: Path) -> None:
    """It ends the process; the library isn't blamed."""
    (broken / f"{module}.py").write_text(
        "import os, signal, threading\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nthreading.Event().wait()\n"
    )
    code, said = forked(broken)
    assert (code, "LR510" in said) == (143, False), said
    assert beside_progress(said).startswith("Terminated.")


def test_without_docstrings(tmp_path: Path) -> None:
    """transformers can't build its classes then; it isn't tried."""
    found = ran(*JOB, PYTHONOPTIMIZE="2")
    said = found.stderr
    assert (found.returncode, "LR510" in said, "PYTHONOPTIMIZE" in said) == (5, True, True), said


def test_without_assertions(warm: str) -> None:
    """None of this package does what a job needs."""
    found = ran(*JOB[:-1], "again", PYTHONOPTIMIZE="1", LLAVA_REMAP_CACHE=warm)
    assert found.returncode == 0, found.stderr
    again = written("again")
    assert {name for name, content in written("warm").items() if content != again[name]} <= {
        "llava_remap.json"  # the command is in it
    }


@pytest.mark.parametrize("most", [5, 7])
def test_no_more_files_can_be_opened(most: int, warm: str) -> None:
    """Five are too few to import torch, and seven too few to write the output."""
    own = {"LLAVA_REMAP_CACHE": warm} if most == 7 else {}
    found = ran(
        *JOB, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)), **own
    )
    said = found.stdout + found.stderr
    assert (found.returncode, "LR511" in said, "ulimit -n" in said) == (4, True, True), said
    assert not Path("out").exists()


def test_no_more_threads_can_be_started(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    found = run(*JOB)
    said = " ".join((found.out + found.err).split())
    assert (found.code, "LR511" in said, "ulimit -u" in said) == (4, True, True), said
    assert not Path("out").exists()


@pytest.mark.parametrize("most", [5, 3000])
def test_threads_are_tried_where_few_are_allowed(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library for linear algebra would end the process, as if Ctrl-C had been pressed."""
    started = []
    monkeypatch.setattr(limits, "_process_limits", lambda: iter([most]))
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    monkeypatch.setattr(threading.Thread, "join", lambda thread: None)
    limits.refuse_without_threads()
    assert bool(started) is (most == 5)


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(RemapError, match=r"LR511 .*TMPDIR"):
        limits.refuse_without_temporary_files()


def test_a_width_of_nothing() -> None:
    """As some tools that run commands set it."""
    environment = {**os.environ, "COLUMNS": "0"}
    inspected = of_commands().run(MAIN, "inspect", "nowhere", environment=environment)
    assert "LR100" in inspected.said
    assert "llava-v1.5" in of_commands().run(MAIN, "rules", "list", environment=environment).printed


@pytest.mark.parametrize("limit", [300 << 20, 600 << 20, 1000 << 20])
def test_no_room_for_libraries(limit: int, tmp_path: Path) -> None:
    """torch would end the process in the midst of its import, and linear algebra with the exit
    code of a mapping problem.
    """

    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    found = ran(*JOB, before=narrow)
    said = found.stdout + found.stderr
    assert (found.returncode, "LR501" in said, "ulimit -v" in said) == (4, True, True), said
    assert not Path("out").exists()


@pytest.mark.parametrize("mebibytes", [150, 250])
@pytest.mark.parametrize("command", [JOB, ("inspect", JOB[3]), ("rules", "list")])
def test_no_room_at_all(command: tuple[str, ...], mebibytes: int) -> None:
    """The limit is named, whether a library, a thread or this package comes upon it first. Neither
    a package nor the number of threads is blamed.
    """

    def narrow() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    warm = os.environ["LLAVA_REMAP_CACHE"]
    found = ran(*command, before=narrow, LLAVA_REMAP_CACHE=warm)
    said = found.stdout + found.stderr
    if found.returncode != 0:
        assert (found.returncode, "LR501" in said, "Traceback" in said) == (4, True, False), said
        assert "pip install" not in said
        assert "ulimit -u" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize("more", [(), ("--format", "json"), ("--dry-run",)])
def test_a_reader_that_goes_away(more: tuple[str, ...], tmp_path: Path) -> None:
    """The job is done: what it prints isn't the job."""
    with of_commands().start(MAIN, *JOB, *more) as process:
        assert process.stdout
        process.stdout.close()
    ended = process.ended()
    assert (ended.code, beside_progress(ended.said)) == (0, "")
    assert Path("out/llava_remap.json").exists() == ("--dry-run" not in more)


def test_both_readers_go_away(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = of_commands().run(MAIN, "inspect", "nowhere", stdout=write, stderr=write)
    assert ran.code == 3
    os.close(write)


def leave_no_folder() -> None:
    """Make the current folder one that was deleted."""
    gone = Path("gone").resolve()
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def test_a_current_folder_that_is_gone() -> None:
    """oneMKL, in torch, ends the process there with 2; before, a path's short form failed as an
    output that can't be written.
    """
    refused = ran(*JOB, before=leave_no_folder)
    assert refused.returncode == 5, refused.stdout + refused.stderr
    assert "LR510" in refused.stderr
    assert "current folder" in refused.stderr
