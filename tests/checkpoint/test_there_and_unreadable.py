"""A name that is there and can't be read as a file is never taken for an absent file, whichever
file of whichever source.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_remap.checkpoint import BESIDE, open_checkpoint
from llava_remap.core.files import is_regular_file
from llava_remap.core.problem import RemapError
from tests.conftest import CLIP, RELEASED, TINY, Run
from tests.forks import HANGS

LORA = TINY / "llava-v1.5-lora"


def dangling(path: Path) -> str:
    path.symlink_to("gone")
    return "it is a link to gone, which doesn't exist"


def through_a_file(path: Path) -> str:
    path.symlink_to(Path(__file__) / "gone")
    return f"it is a link to {__file__}/gone, which doesn't exist"


def too_long(path: Path) -> str:
    path.symlink_to("x" * 300)
    return (
        "xxx, which doesn't exist" if path.parent == Path() else ""
    )  # where it is a folder's, the system's own words do


def circle(path: Path) -> str:
    path.symlink_to(path.name)
    return "Too many levels of symbolic links"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "it is a named pipe"


def link_to_a_pipe(path: Path) -> str:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")
    return "it is a named pipe"


def plug(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))
    return "it is a socket"


def device(path: Path) -> str:
    path.symlink_to("/dev/null")
    return "it is a device"


def folder(path: Path) -> str:
    path.mkdir()
    return "it is a folder where a file should be"


Kind = Callable[[Path], str]
KINDS: tuple[Kind, ...] = (
    dangling,
    through_a_file,
    too_long,
    circle,
    pipe,
    link_to_a_pipe,
    plug,
    device,
    folder,
)


def instead(path: Path, kind: Kind) -> str:
    """Puts something else in the place of a file; what a message has to say of it."""
    path.unlink(missing_ok=True)
    return kind(path)


def copy(source: Path, name: str) -> Path:
    return Path(shutil.copytree(source, name))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_there_is_not_absent(kind: Kind) -> None:
    reason = kind(Path("name"))
    with pytest.raises(OSError, match=re.escape(reason)) as caught:
        is_regular_file(Path("name"))
    assert caught.value.filename == "name"


@pytest.mark.parametrize("name", ["absent", "absent/too", "file/below", "x" * 300, "a\0b"])
def test_what_nothing_can_be_is_absent(name: str) -> None:
    Path("file").touch()
    assert is_regular_file(Path("file"))
    assert not is_regular_file(Path(name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted({name for names in BESIDE.values() for name in names}))
@pytest.mark.parametrize("weights", [True, False])
def test_every_small_file_of_a_source(name: str, kind: Kind, weights: bool) -> None:
    """Whatever it is opened for: who reads it later may trust that it is there or isn't."""
    source = copy(RELEASED / "safetensors", "source")
    reason = instead(source / name, kind)
    with pytest.raises(RemapError) as caught:
        open_checkpoint(source, weights=weights, part=True)
    (problem,) = caught.value.problems
    assert problem.code in ("LR100", "LR113")
    assert f"{name}` can't be read: " in problem.cause
    assert reason in problem.cause


#: A folder, a name in it that the tool looks for, and how the folder is opened.
WEIGHTS = [
    (RELEASED / "safetensors", "model.safetensors"),
    (RELEASED / "sharded_safetensors", "model.safetensors.index.json"),
    (RELEASED / "sharded_safetensors", "model-00002-of-00002.safetensors"),
    (RELEASED / "bin", "pytorch_model.bin"),
    (
        RELEASED / "bin",
        "model.safetensors",
    ),  # another form is there and readable: it mustn't be taken in its place
    (RELEASED / "bin", "model.safetensors.index.json"),
    (LORA, "adapter_model.bin"),
    (LORA, "adapter_model.safetensors"),
    (LORA, "non_lora_trainables.bin"),
    (LORA, "adapter_config.json"),
    (TINY / "llava-v1.5" / "pretrain_projector_only", "mm_projector.bin"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("source", "name"), WEIGHTS)
def test_every_file_of_weights(source: Path, name: str, kind: Kind) -> None:
    place = copy(source, "source")
    reason = instead(place / name, kind)
    with pytest.raises(RemapError) as caught:
        open_checkpoint(place, part=True)
    assert {problem.code for problem in caught.value.problems} == {"LR100"}
    message = str(caught.value)
    assert f"{name}` can't be read: " in message
    assert reason in message


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_user_names(kind: Kind, run: Run) -> None:
    """A link to nowhere with the name of a repository isn't taken for the hub's."""
    Path("org").mkdir()
    reason = kind(Path("org/name"))
    if kind is folder:
        reason = "no weight file"
    ran = run("inspect", "org/name")
    assert ran.code == 3
    assert reason in ran.err
    assert "HF_HUB_OFFLINE" not in ran.err


@pytest.mark.parametrize("kind", KINDS)
def test_the_projector_beside_an_adapter(kind: Kind, run: Run) -> None:
    """Whether one was trained is asked of the files beside the pairs; what can't be read is no
    answer.
    """
    adapter = copy(LORA, "adapter")
    (adapter / "non_lora_trainables.bin").unlink()
    reason = instead(adapter / "mm_projector.bin", kind)
    sources = (
        "--source",
        f"model={RELEASED / 'bin'}",
        "--source",
        f"vision_tower={CLIP}",
        "--source",
        f"adapter={adapter}",
    )
    ran = run("apply", "llava-v1.5", *sources, "--dry-run")
    assert ran.code == 3
    assert reason in ran.err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mine.yaml", "parent.yaml", "turns.jinja", "llava-v1.5.yaml"])
def test_every_rule_file(name: str, kind: Kind, run: Run) -> None:
    """One with the name of a shipped file isn't passed over for that."""
    head = "schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\n"
    templates = (
        "processor:\n  chat_template: mine\n  chat_templates: {mine: {files: [turns.jinja]}}\n"
    )
    Path("mine.yaml").write_text(f"{head}extends: [llava-v1.5.yaml, parent.yaml]\n{templates}")
    Path("parent.yaml").write_text("schema: 1\n")
    Path("turns.jinja").write_text("{{ messages }}")
    reason = instead(Path(name), kind)
    ran = run("rules", "lint", "mine.yaml")
    assert ran.code == 2
    assert "LR200" in ran.out + ran.err
    assert reason in ran.out + ran.err


def test_a_folder_with_the_name_of_a_shipped_rule_file_is_in_nobodys_way(run: Run) -> None:
    Path("llava-v1.5").mkdir()
    assert run("rules", "lint", "llava-v1.5").code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_record(kind: Kind, run: Run) -> None:
    Path("out").mkdir()
    reason = kind(Path("out/llava_remap.json"))
    for command in (("verify", "out"), ("revert", "out", "--output", "back")):
        ran = run(*command)
        assert ran.code == 3
        assert reason in ran.err


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not folder])
def test_the_folder_of_snapshots(kind: Kind, run: Run) -> None:
    Path("mine.yaml").write_text(
        "schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\nextends: [llava-v1.5.yaml]\n"
    )
    kind(Path("mine.snapshots"))
    ran = run("rules", "test", "mine.yaml")
    assert ran.code == 3
    assert "LR113" in ran.out + ran.err


def without_rights() -> None:
    """Root may read everything; not without these two of its capabilities: DAC_OVERRIDE and
    DAC_READ_SEARCH.
    """
    if os.geteuid() == 0:
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="takes rights away as Linux does")
@pytest.mark.parametrize(
    ("source", "name", "code"),
    [
        ("model", "generation_config.json", 3),
        ("model", "tokenizer.model", 3),
        ("model", "config.json", 3),
        ("model", "model.safetensors", 3),
        ("model", "", 3),
        ("tower", "preprocessor_config.json", 3),
    ],
)
def test_what_must_not_be_read(source: str, name: str, code: int) -> None:
    """Nothing is said of an output that can't be written."""
    copy(RELEASED / "safetensors", "model"), copy(CLIP, "tower")
    path = Path(source, name)
    mode = path.stat().st_mode
    path.chmod(0)
    command = [
        sys.executable,
        "-m",
        "llava_remap",
        "apply",
        "llava-v1.5",
        "--source",
        "model",
        "--source",
        "vision_tower=tower",
    ]
    try:
        ran = subprocess.run(
            [*command, "--output", "out"],
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
            preexec_fn=without_rights,
        )
    finally:
        path.chmod(mode)
    assert ran.returncode == code
    assert "LR100" in ran.stderr
    assert f"`{path}`" in ran.stderr or f"/{path}`" in ran.stderr
    assert "Permission denied" in ran.stderr
    assert not Path("out").exists()
