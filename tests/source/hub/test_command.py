"""Whole commands with the hub, each a process of its own: `HF_ENDPOINT` leads to a server on
this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava_remap.cli.commands import app
from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, DATA, RELEASED, TINY, Run, beside_progress, ended
from tests.end_to_end.test_interrupt import ELSEWHERE
from tests.forks import HANGS, MAIN, Ended, of_commands

from .server import Hub, serve

MODEL, TOWER = "liuhaotian/llava-v1.5-7b", "openai/clip-vit-large-patch14-336"
NOWHERE = "http://127.0.0.1:9"  # the port that discards; nothing listens there


@pytest.fixture(autouse=True, scope="module")
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The libraries' answers are in the cache, so that the processes need not import torch."""
    for source in (RELEASED / "sharded", TINY / "llava-v1.5" / "full_state_dict"):
        out = tmp_path_factory.mktemp("warm") / "out"
        apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], out)
    CliRunner().invoke(app, ["inspect", str(RELEASED / "sharded")])


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The defaults of `llava-v1.5`, in small."""
    with serve() as served:
        served.add(MODEL, RELEASED / "sharded")
        served.add(TOWER, CLIP)
        yield served


def command(endpoint: str, *arguments: object, **more: str) -> Ended:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(Path("home").resolve()),
        "NO_PROXY": "127.0.0.1",
        **more,
    }
    if not more:
        environment.pop("HF_HUB_OFFLINE")
    return of_commands().run(MAIN, *arguments, environment=environment)


def weights(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("model*")}


def test_without_a_source_the_defaults_are_downloaded(hub: Hub) -> None:
    """Model and tower, each at a commit that the record names; then a second time, and a
    comparison, without the hub.
    """
    ran = command(hub.url, "apply", "rules/llava-v1.5.yaml")
    assert (ran.code, beside_progress(ran.said)) == (0, "")
    commits = {id: hub.repos[id].refs["main"] for id in (MODEL, TOWER)}
    assert f"{MODEL}@{commits[MODEL]}" in ran.printed
    assert "downloaded before" not in ran.printed
    record = json.loads(Path("llava-v1.5-7b-hf", "llava_remap.json").read_text())
    assert {name: source["location"] for name, source in record["sources"].items()} == {
        "model": f"{MODEL}@{commits[MODEL]}",
        "vision_tower": f"{TOWER}@{commits[TOWER]}",
    }
    local = command(
        NOWHERE,
        "apply",
        "llava-v1.5",
        "--source",
        RELEASED / "sharded",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "local",
    )
    assert local.code == 0
    assert weights("llava-v1.5-7b-hf") == weights("local")
    asked = len(hub.asked)
    for endpoint, more in ((hub.url, ["--offline"]), (NOWHERE, [])):
        ran = command(endpoint, "apply", "llava-v1.5", "--output", f"again{len(more)}", *more)
        assert (ran.code, beside_progress(ran.said)) == (0, "")
        assert (
            "downloaded earlier: the hub wasn't asked or didn't answer; the rule file's default; "
            "27 tensors" in ran.printed
        )
        assert weights(f"again{len(more)}") == weights("local")
    against = ("--against", f"{MODEL}@{commits[MODEL]}", "--against", f"vision_tower={TOWER}")
    ran = command(hub.url, "verify", "local", *against, "--offline")
    assert ran.code == 0
    assert "80 tensors equal, bit by bit" in ran.printed
    assert len(hub.asked) == asked


def test_one_dumped_state_dict_with_its_tower(hub: Hub) -> None:
    """Only `model_state_dict.bin` and what stands beside it; the default tower isn't asked for."""
    hub.add("me/dumped", TINY / "llava-v1.5" / "full_state_dict")
    ran = command(hub.url, "apply", "llava-v1.5", "--source", "me/dumped", "--dry-run")
    assert "LR112" in ran.printed  # a tiny tower's heads are no preset
    assert not any(TOWER in path for _, path in hub.asked)
    ran = command(
        hub.url, "apply", "llava-v1.5", "--source", "me/dumped", "--source", f"vision_tower={TOWER}"
    )
    assert ran.code == 0
    assert Path("dumped-hf", "llava_remap.json").is_file()


def test_only_the_tower_is_missing(hub: Hub) -> None:
    ran = command(hub.url, "apply", "llava-v1.5", "--source", RELEASED / "bin", "--dry-run")
    assert ran.code == 0
    assert TOWER in ran.printed
    assert not any(MODEL in path for _, path in hub.asked)
    assert hub.got() == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_a_revision(hub: Hub) -> None:
    old = hub.repos[MODEL].refs["main"]
    hub.add(MODEL, RELEASED / "bin")
    ran = command(hub.url, "apply", "llava-v1.5", "--source", f"{MODEL}@{old}", "--dry-run")
    assert ran.code == 0
    assert "torch .bin, 2 shards" in ran.printed
    ran = command(hub.url, "apply", "llava-v1.5", "--source", f"{MODEL}@gone", "--dry-run")
    assert ran.code == 3
    assert "has no revision" in ran.said


def test_config_and_tokenizer_of_a_language_model(hub: Hub) -> None:
    """What the old script's `--text_model_id` was for: none of its weights are downloaded."""
    ran = command(
        hub.url,
        "apply",
        "llava-v1.5",
        "--source",
        TINY / "llava-v1.5" / "legacy_pickle",
        "--source",
        f"language_model={MODEL}",
        "--dry-run",
    )
    assert ran.code == 0
    assert "LR408" not in ran.printed
    assert "tokenizer.model" in hub.got()
    assert not any(name.startswith("pytorch_model") for name in hub.got())


@pytest.mark.parametrize("arguments", [(), ("--dry-run",), ("--dry-run", "--format", "json")])
def test_without_a_network(arguments: tuple[str, ...]) -> None:
    """One clear message, and nothing else."""
    ran = command(NOWHERE, "apply", "rules/llava-v1.5.yaml", *arguments)
    assert ran.code == 3
    assert ran.said.count("LR114") == 1
    assert f"`{MODEL}` can't be downloaded: no connection to {NOWHERE}" in ran.said
    assert "--source model=DIR" in ran.said
    assert f"hf download {MODEL} --local-dir " in ran.said
    assert "Traceback" not in ran.said
    assert len(ran.said.splitlines()) <= 5
    assert {path.name for path in Path.cwd().iterdir()} <= {"home"}


def test_without_a_network_the_tower_is_asked_for() -> None:
    ran = command(NOWHERE, "apply", "llava-v1.5", "--source", RELEASED / "bin")
    assert ran.code == 3
    assert (
        "source `vision_tower` is not given, and `model` has no `model.vision_tower.{rest...}`"
        in ran.printed
    )
    assert f"`{TOWER}` can't be downloaded" in ran.printed
    assert "--source vision_tower=DIR" in ran.printed


def test_offline_by_environment() -> None:
    ran = command(NOWHERE, "apply", "llava-v1.5", HF_HUB_OFFLINE="1")
    assert ran.code == 3
    assert "HF_HUB_OFFLINE is set" in ran.said


def test_a_slip_in_a_path_is_no_hub_id(hub: Hub) -> None:
    Path("models").mkdir()
    ran = command(hub.url, "apply", "llava-v1.5", "--source", "models/llava-v1.5-7b")
    assert ran.code == 3
    assert "LR100" in ran.said
    assert "If you mean the hub's models/llava-v1.5-7b" in ran.said
    assert hub.asked == []


def test_a_default_is_no_slip(hub: Hub) -> None:
    """A folder that is called as the default's owner changes nothing."""
    Path("liuhaotian").mkdir()
    Path("openai").mkdir()
    assert command(hub.url, "apply", "llava-v1.5", "--dry-run").code == 0


def test_inspect_a_repository(hub: Hub) -> None:
    ran = command(hub.url, "inspect", MODEL)
    assert ran.code == 0
    assert "llava-v1.5: fits" in ran.printed
    assert (
        f"llava-remap apply llava-v1.5 --source {MODEL}@{hub.repos[MODEL].refs['main']}"
        in ran.printed
    )


def test_differences_from_a_repository(hub: Hub) -> None:
    ran = command(hub.url, "diff", RELEASED / "bin", MODEL)
    assert ran.code == 0, ran.printed + ran.said
    assert f"B  {MODEL}@" in ran.printed
    ran = command(NOWHERE, "diff", RELEASED / "bin", TOWER)
    assert ran.code == 3
    assert "Download it elsewhere, and give its folder as B." in ran.said


def test_local_sources_need_no_hub_library(run: Run) -> None:
    """It is imported for hub sources only; and by transformers, which is asked once for what isn't
    known yet.
    """
    run("inspect", str(DATA / "fork"))
    program = (
        "import sys\nfrom llava_remap.cli import main\ntry: main()\n"
        "finally: print('huggingface_hub' in sys.modules)"
    )
    arguments = ["inspect", str(DATA / "fork")]
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("elsewhere", ["", ELSEWHERE])
@pytest.mark.parametrize("file", ["config.json", "pytorch_model-00001-of-00002.bin"])
def test_interrupted_while_it_downloads(file: str, elsewhere: str, hub: Hub) -> None:
    """A file that doesn't come on is not waited for, be it one of several that come at a time or
    one of the weights.

    `elsewhere`: what has another thread than the main one get the signal.
    """
    hub.stalled = file
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(Path("home").resolve()),
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE")
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from "
        "llava_remap.cli import main; main()"
    )
    call = [sys.executable, "-c", elsewhere + program, "apply", "llava-v1.5"]
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = str(
        2 * HANGS
    )  # else the library might go on by itself
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not hub.stalling.wait(0.1):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = ended(process)
    assert (process.returncode, beside_progress(errors).strip()) == (
        130,
        "Interrupted: this run leaves no unfinished output behind.",
    )
