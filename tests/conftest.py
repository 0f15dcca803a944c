"""What tests share: the data folder, the command line in-process, and copies of genuine
checkpoints with something changed.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from typer.main import get_command
from typer.testing import CliRunner

from llava_remap.cli.commands import app
from llava_remap.execute import Folder
from llava_remap.rulefile import pattern
from llava_remap.verification.record import own_digest
from tests.forks import HANGS, Forks, of_commands

if TYPE_CHECKING:
    import torch

os.environ.setdefault(
    "TRANSFORMERS_VERBOSITY", "error"
)  # as the command line does, before transformers is imported
for _timeout in (
    "HF_HUB_ETAG_TIMEOUT",
    "HF_HUB_DOWNLOAD_TIMEOUT",
):  # a busy machine's server is slow
    os.environ.setdefault(_timeout, "1800")
# Tensors here are tiny: threads of linear algebra would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny"
MANIFESTS = DATA / "manifests"
CLIP = TINY / "clip-vit-tiny-patch14-28"
RELEASED = TINY / "llava-v1.5" / "released"

# No test is judged by a clock: the first strategy with texts, for one, makes hypothesis read all of
# Unicode. And none by chance: the same examples every time, others only in `make fuzz`.
settings.register_profile(
    "no clock", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5000"))
settings.register_profile(
    "fuzz", settings.get_profile("no clock"), derandomize=False, max_examples=_EXAMPLES
)
settings.load_profile("no clock")

#: Modules that are slow to import, and that what needs none of them must not import.
HEAVY = {"torch", "transformers", "huggingface_hub", "numpy", "tokenizers", "safetensors"}

#: What a run `--without-torch` can't import.
WITHOUT = {"torch", "transformers", "peft"}

#: Folders whose tests all ask other versions of transformers than the installed one.
COMPAT = ("tests/compat/", "tests/original/", "tests/text_models/")


def heavy(*arguments: object) -> set[str]:
    """The heavy modules that a whole process of the command line has loaded at its end."""
    program = (
        f"import sys\nsys.argv = {['llava-remap', *map(str, arguments)]!r}\n"
        "from llava_remap.cli import main\ntry: main()\n"
        f"finally: print(*({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(ran.stderr.split())


def ended(process: subprocess.Popen[str], more: str | None = None) -> tuple[str, str]:
    """What else a process prints until it ends, on standard output and on standard error; one that
    hangs is ended.

    Args:
        more: what it is given to read.
    """
    try:
        return process.communicate(more, timeout=HANGS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def beside_progress(errors: str) -> str:
    """What stands on standard error beside lines of progress; on a slow machine any job may last
    long enough for some.
    """
    return re.sub(r"^[a-z ]+(, \d+ %: .*| …| \\u2026)\n", "", errors, flags=re.MULTILINE)


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """No file may become larger than `nbytes` meanwhile, as `ulimit -f` sets it."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def lose_last_byte(patch: pytest.MonkeyPatch) -> None:
    """A disk that loses the last byte of every weight file."""
    real = Folder.write

    def write(folder: Folder, name: str, fill: Any) -> None:
        real(folder, name, fill)
        if name.endswith(".safetensors"):
            with (folder.path / name).open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\x7f")

    patch.setattr(Folder, "write", write)


def run_away(patch: pytest.MonkeyPatch, part: str, length: int, end: str = "") -> None:
    """Regexes with this part hit their time limit on names of this length or more with this end,
    however fast this machine is.
    """

    def search(spent: pattern.TimeSpent, compiled: Any, name: str) -> Any:
        if part in compiled.pattern and len(name) >= length and name.endswith(end):
            raise pattern.RunawayError(name)
        return compiled.search(name)

    patch.setattr(pattern.TimeSpent, "search", search)


Tensors = dict[str, "torch.Tensor"]
Run = Callable[..., "Ran"]
Changed = Callable[..., Path]


@dataclass(frozen=True)
class Ran:
    """What the command line returned and printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-torch",
        action="store_true",
        help="an import of torch or transformers fails: what is run has to need neither",
    )


class _NotImported(MetaPathFinder):
    """Lets an import of `WITHOUT` fail; for `--without-torch`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in WITHOUT:
            raise ImportError(f"{name} is imported in a run `--without-torch`")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-torch"):
        sys.meta_path.insert(0, _NotImported())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(COMPAT):
            item.add_marker("compat")
    if hasattr(config, "workerinput"):
        from tests.parallel import rank

        items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """For any `--dist`; tests/parallel.py says what goes together."""
    from tests.parallel import ByUnit

    config.option.loadscopereorder = False
    return ByUnit(config, log)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was asked in this run, by any of its workers, may be kept for this run, and nothing of
    an earlier one.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    (folder / "cache").mkdir(exist_ok=True, mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_REMAP_CACHE", str(folder / "cache"))
        patch.setattr(import_module("llava_remap.source.hub.download"), "_TIMEOUT", HANGS)
        patch.setattr(import_module("llava_remap.cli.progress"), "_PATIENCE", HANGS)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_disks() -> Iterator[None]:
    """`os.fsync` does nothing: no test sees what a failing machine leaves on its disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_command() -> Iterator[None]:
    """Typer makes the command of an app anew for each run in a process; here it is made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", cache(get_command))
        yield


@pytest.fixture(autouse=True, scope="session")
def _forks_end() -> Iterator[None]:
    yield
    if of_commands.cache_info().currsize:
        of_commands().close()


@pytest.fixture(autouse=True, scope="session")
def _rendering() -> Iterator[None]:
    """Chat templates are rendered in forks of one process: transformers, which renders them, would
    be imported for each. tests/core/test_bounded.py renders in a process that isn't one.
    """
    bounded = import_module("llava_remap.core.bounded")
    module = "llava_remap.folder.render"
    with ExitStack() as started, pytest.MonkeyPatch.context() as patch:

        @cache
        def rendering() -> Forks:
            return started.enter_context(Forks(module))

        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
            if module not in command:
                return subprocess.run(command, **options)
            ended = rendering().run(*command[2:], more=options["input"])
            return subprocess.CompletedProcess(command, ended.code, ended.out, ended.err)

        patch.setattr(bounded, "subprocess", SimpleNamespace(run=run))
        yield


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, with no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run() -> Run:
    """Run `llava-remap` in-process; an exception other than an exit fails the test."""

    def run_app(*arguments: object) -> Ran:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run_app


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """A genuine checkpoint (a folder with `model.safetensors`), copied with its tensors and
    config changed by functions.
    """

    def make(
        source: Path = RELEASED / "safetensors",
        tensors: Callable[[Tensors], object] = lambda tensors: None,
        config: Callable[[dict[str, Any]], object] = lambda config: None,
    ) -> Path:
        from safetensors.torch import load_file, save_file

        folder = tmp_path / "checkpoint"
        shutil.copytree(source, folder)
        state = load_file(folder / "model.safetensors")
        tensors(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        content = json.loads((folder / "config.json").read_text())
        config(content)
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def fused_source(tmp_path: Path) -> Path:
    """LLaVA-1.5 with fused and turned matrices, for `fused_rules`."""
    from tests.fused import fused_checkpoint

    return fused_checkpoint(tmp_path / "fused")


@pytest.fixture
def fused_rules(tmp_path: Path) -> Path:
    """A rule file with an operation of each kind."""
    from tests.fused import RULES

    path = tmp_path / "fused.yaml"
    path.write_text(RULES)
    return path


def with_own_digest(record: Mapping[str, Any]) -> str:
    """The text of a record that was changed on purpose, digest and all."""
    return json.dumps({**record, "digest": own_digest(record)})
