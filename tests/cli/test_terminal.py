"""Every command and every report, on inputs whose names hold what a terminal obeys: nothing of
it is printed as it is.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, save

import llava_remap.cli as cli
from llava_remap.core.escaped import EscapingStream, printable, printable_lines, quote
from tests.conftest import CLIP, RELEASED, Ran, beside_progress

#: C0, C1 and DEL; turned direction; nothing to be seen; ends of lines; markup and an emoji of rich.
EVIL = "\x1b[31m\x9b2J\x07\x08\x7f\x0b\u202e\u2066\u200b\ufeff\u00ad\u2028\u2029\x85[red][link=http://x]:smile:"
#: As a path: with a byte that is no text.
EVIL_PATH = EVIL.replace("/", "") + os.fsdecode(b"\xff") + "\nDone"

Main = Callable[..., Ran]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """The whole command line, in this process."""
    monkeypatch.setattr(cli, "listen", lambda: None)

    def run_main(*arguments: object) -> Ran:
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["llava-remap", *map(str, arguments)])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        out, err = (read(stream) for stream in streams)
        return Ran(int(ended.value.code or 0), out, err)

    def read(stream: io.TextIOWrapper) -> str:
        stream.flush()
        stream.seek(0)
        return stream.read()

    return run_main


def harmless(ran: Ran, *words: str) -> Ran:
    """Nothing but letters and ends of lines is printed, and no line begins as the path would
    have it.
    """
    for text in (ran.out, ran.err):
        assert printable_lines(text) == text
        assert not [line for line in text.splitlines() if line == "Done"]
    for word in words:
        assert word in ran.out + ran.err, ran.out + ran.err
    return ran


def manifest(path: Path, tensors: dict[str, list[int]], **more: Any) -> Path:
    content = {"format": "llava-remap/manifest", "format_version": 1, "name": "x", **more}
    path.write_text(
        json.dumps(
            {**content, "tensors": {k: {"dtype": "F32", "shape": v} for k, v in tensors.items()}}
        )
    )
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with such a name, and inside it a checkpoint with such a name, among others in
    its config and tensors.
    """
    folder = tmp_path / EVIL_PATH
    source = folder / EVIL_PATH
    shutil.copytree(RELEASED / "safetensors", source)
    monkeypatch.chdir(folder)
    return Path(EVIL_PATH)


def spoil(source: Path, config: dict[str, Any], *, tensor: bool = True) -> None:
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**content, **config}))
    if tensor:
        tensors = load((source / "model.safetensors").read_bytes())
        tensors[f"model.{EVIL}.weight"] = torch.zeros(3)
        (source / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))


TOWER = ("--source", f"vision_tower={CLIP}")


def rules(**more: Any) -> Path:
    fields = {
        "schema": 1,
        "name": EVIL,
        "version": "1.0.0",
        "summary": EVIL,
        "extends": ["llava-v1.5.yaml"],
        **more,
    }
    path = Path(f"{EVIL_PATH}.yaml")
    path.write_text(yaml.safe_dump(fields, sort_keys=False, default_flow_style=False))
    return path


def test_the_function() -> None:
    assert printable("model.layers.3é图") == "model.layers.3é图"
    for character in [
        *map(chr, range(0x20)),
        *map(chr, range(0x7F, 0xA0)),
        *"\u200b\u200f\u202a\u202e\u2066\u2069\u2028\u2029\ud800\ufe0f\u3164",
    ]:
        assert character not in (shown := printable(f"a{character}b"))
        assert shown.isascii()
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


@pytest.mark.parametrize(
    "word",
    ["plain", "a b", "new\nline", "esc\x1b[31m'\\", "\u202e$HOME", os.fsdecode(b"no\xfftext")],
)
def test_a_word_of_a_command_is_the_same_to_a_shell(word: str) -> None:
    said = quote(word)
    assert printable(said) == said
    ran = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True, check=True)
    assert ran.stdout == os.fsencode(word)


def test_the_stream_escapes_what_any_library_prints() -> None:
    stream = io.StringIO()
    print(EVIL, file=EscapingStream(stream))
    assert stream.getvalue() == printable(EVIL) + "\n"


def test_apply_verify_and_back(here: Path, main: Main) -> None:
    """Whole, with paths such as these."""
    ran = harmless(
        main("apply", rules(), "--source", here, *TOWER, "--output", f"{EVIL_PATH}-out"),
        "[red][link=http://x]:smile:",
    )
    assert ran.code == 0, ran.err
    out = f"{EVIL_PATH}-out"
    assert harmless(main("verify", out)).code == 0
    assert harmless(
        main(
            "verify",
            out,
            "--against",
            here,
            "--against",
            f"vision_tower={CLIP}",
            "--format",
            "json",
        )
    ).json["verified"]
    assert harmless(main("revert", out, "--output", "back"), "\\x1b[31m").code == 0
    reverse = ("revert", out, "--rules", "llava-v1.5", "--output", "back2")
    assert harmless(main(*reverse), "\\x1b[31m").code == 0
    assert harmless(main("inspect", out), "LR109", "\\x1b[31m").code == 0
    Path(out, f"{EVIL_PATH}.json").write_text("{}")
    Path(out, "config.json").unlink()
    assert harmless(main("verify", out), "LR603", "\\x1b[31m").code == 1
    assert not harmless(main("verify", out, "--format", "json")).json["verified"]
    assert harmless(main("shrink", here, "--output", f"{EVIL_PATH}-small"), "\\x1b[31m").code == 0


def test_differences(here: Path, main: Main) -> None:
    """In names, configs, words, special tokens, chat templates and plans."""
    other = Path(f"{EVIL_PATH}-other")
    shutil.copytree(here, other)
    spoil(here, {EVIL: {EVIL: EVIL}})
    (here / "added_tokens.json").write_text(json.dumps({EVIL: 500}))
    roles = json.loads((here / "special_tokens_map.json").read_text())
    (here / "special_tokens_map.json").write_text(json.dumps({**roles, "eos_token": EVIL}))
    for folder, text in ((here, EVIL), (other, "b\nDone")):
        (folder / "chat_template.jinja").write_text(f"{{{{ raise_exception('x') }}}}{text}")
        (folder / "additional_chat_templates").mkdir()
    (here / "additional_chat_templates" / f"{EVIL_PATH}.jinja").write_text(EVIL)
    plans = []
    for source in (here, other):
        plans.append(f"{source}.json")
        options = ("--source", f"model={source}", *TOWER, "--dry-run", "--report", plans[-1])
        harmless(main("apply", "llava-v1.5", *options))
    for form in ("human", "json"):
        ran = harmless(
            main("diff", here, other, "--format", form), "u001b" if form == "json" else "\\x1b[31m"
        )
        assert ran.code == 1
        assert harmless(main("diff", *plans, "--format", form)).code == 1
        assert harmless(main("diff", here, plans[0], "--format", form)).code == 2
        assert harmless(main("diff", here, EVIL, "--format", form)).code == 3


@pytest.mark.parametrize("form", ["human", "json"])
def test_plans_that_are_refused(form: str, here: Path, main: Main) -> None:
    spoil(here, {"mm_vision_tower": EVIL, "architectures": [EVIL], EVIL: EVIL})
    ran = harmless(main("apply", "llava-v1.5", "--source", here, "--dry-run", "--format", form))
    assert ran.code
    assert json.loads(ran.out)["problems"] if form == "json" else EVIL[-10:] in ran.out + ran.err
    harmless(
        main(
            "apply",
            "llava-v1.5",
            "--source",
            here,
            *TOWER,
            "--dry-run",
            "--format",
            form,
            "--report",
            f"{EVIL_PATH}.json",
        )
    )
    harmless(main("inspect", here), "\\x1b[31m")
    harmless(main("apply", "llava-v1.5", "--source", here, *TOWER, "--output", here))


def test_several_checkpoints_and_their_log(here: Path, main: Main) -> None:
    shutil.copytree(here, "b")
    (Path("b") / "model.safetensors").write_bytes(b"")
    ran = harmless(
        main("convert", here, "b", *TOWER, "--output-dir", f"out{EVIL_PATH}", "--log", "log"),
        "Summary",
    )
    assert ran.code == 3
    assert printable_lines(Path("log").read_text()) == Path("log").read_text()
    harmless(main("apply", here), "llava-remap convert")


def test_a_config_and_a_tokenizer(here: Path, main: Main) -> None:
    spoil(here, {"model_type": EVIL, "rope_scaling": {EVIL: EVIL}}, tensor=False)
    harmless(main("apply", "llava-v1.5", "--source", here, *TOWER, "--dry-run"))
    (here / "added_tokens.json").write_text(json.dumps({EVIL: 5, "<image>": EVIL}))
    harmless(main("apply", "llava-v1.5", "--source", here, *TOWER, "--dry-run"))
    (here / "config.json").write_text(EVIL)
    harmless(main("apply", "llava-v1.5", "--source", here, *TOWER, "--dry-run"))


@pytest.mark.parametrize(
    "more",
    [
        {EVIL: EVIL},
        {"extends": [EVIL]},
        {"names": [{"id": EVIL, "from": EVIL, "to": EVIL}]},
        {"names": [{"id": "a", "match": f"({EVIL}", "replace": EVIL}]},
        {"names": [{"id": "a", "from": "{x...}", "drop": EVIL}]},
        {"post_load": [{"use": EVIL}]},
        {"post_load": [{"use": "expand_embeddings", "with": {EVIL: 1}}]},
        {"requires": {EVIL: {"config": {"model_type": [EVIL]}, "else": EVIL}}},
        {"notices": {EVIL: {"text": EVIL}}},
        {"detect": {"config": {EVIL: EVIL}}},
        {"target": {"class": EVIL}},
        {"target": {"config": {EVIL: {"const": EVIL}}}},
        {"processor": {"chat_template": EVIL + "{% if %}"}},
        {"processor": {"chat_template": f"{{{{ raise_exception('{EVIL}') }}}}"}},
        {
            "processor": {
                "chat_templates": {EVIL: {"when": {"token": "</s>"}, "text": EVIL, "system": EVIL}}
            }
        },
        {"processor": {"chat_template": f"<|{EVIL}|><image>"}},
        {"tests": [{"from": EVIL, "to": EVIL}]},
        {"tokens": [{"text": EVIL, "role": "image"}]},
        {"sources": {EVIL: {"default": EVIL}}},
    ],
    ids=lambda more: next(iter(more)).partition("\x1b")[0] or "unknown",
)
def test_rule_files(more: dict[str, Any], here: Path, main: Main) -> None:
    path = rules(**more)
    for form in ("human", "json"):
        harmless(main("apply", path, "--source", here, *TOWER, "--dry-run", "--format", form))
        harmless(main("rules", "test", path, "--format", form))
        harmless(main("rules", "explain", path, EVIL, "model.norm.weight", "--format", form))
    for form in ("human", "json", "github"):
        harmless(main("rules", "lint", path, "--format", form))
    harmless(main("rules", "explain", path, "--as", "key-mapping"))


def test_rules_with_names_of_a_checkpoint(here: Path, main: Main) -> None:
    spoil(here, {})
    path = rules()
    for form in ("human", "json", "github"):
        harmless(
            main("rules", "lint", path, "--source", here, *TOWER, "--format", form),
            "\\x1b[31m" if form != "json" else "u001b",
        )
    for form in ("human", "json"):
        harmless(main("rules", "explain", path, "--source", here, *TOWER, "--format", form))
        harmless(
            main("rules", "test", path, "--source", here, *TOWER, "--update", "--format", form)
        )
    harmless(main("rules", "list"))
    harmless(main("rules", "schema"))


def test_a_draft_and_what_is_written_into_it(here: Path, main: Main) -> None:
    """In YAML a line in a comment ends at U+2028 too; what came behind it would be a rule."""
    given = {
        f"model.{EVIL}.weight": [8, 8],
        "model.embed.weight": [64, 16],
        "a.w": [4, 4],
        "b.w": [4, 4],
        f"x{EVIL}.w": [3, 3],
    }
    wanted = {
        f"m.{EVIL}.owned.weight": [8, 8],
        "m.embed.weight": [64, 16],
        "c.w": [4, 4],
        "d.w": [4, 4],
        f"y{EVIL}.w": [5],
    }
    a, b = (
        manifest(Path(f"{EVIL_PATH}a.json"), given, config={"architectures": [EVIL]}),
        manifest(Path("b.json"), wanted),
    )
    draft = Path(f"{EVIL_PATH}.yaml")
    ran = harmless(
        main("rules", "new", "--from", a, "--to", b, "--output", draft, "--map", f"{EVIL}={EVIL}"),
        "\\x1b[31m",
    )
    ran = harmless(main("rules", "new", "--from", a, "--to", b, "--output", draft), "\\x1b[31m")
    text = draft.read_text(encoding="utf-8")
    assert ran.code in (0, 1)
    assert printable_lines(text) == text
    assert harmless(main("rules", "lint", draft)).code in (0, 2)
    assert harmless(main("rules", "test", draft)).code == 0
    harmless(main("rules", "new", "--from", here, "--to", EVIL, "--output", "c.yaml"))
    harmless(
        main(
            "rules",
            "new",
            "--from",
            EVIL,
            "--to",
            "LlavaForConditionalGeneration",
            "--output",
            "c.yaml",
        )
    )
    harmless(
        main(
            "rules",
            "new",
            "--from",
            here,
            "--to",
            "LlavaForConditionalGeneration",
            "--output",
            "c.yaml",
        )
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (EVIL,), ("rules", EVIL), (f"--{EVIL}",), ("apply", EVIL),
        ("apply", "llava-v1.5", "--source", EVIL),
        ("apply", "llava-v1.5", "--source", f"{EVIL}=x"), ("apply", "llava-v1.5", "--dtype", EVIL),
        ("apply", "llava-v1.5", "--vocab", EVIL), ("apply", "llava-v1.5", "--layout", EVIL),
        ("apply", "llava-v1.5", "--jobs", EVIL), ("apply", "llava-v1.5", "--max-shard-size", EVIL),
        ("apply", "llava-v1.5", "--report", EVIL), ("verify", EVIL),
        ("revert", EVIL, "--output", EVIL),
        ("inspect", EVIL), ("shrink", EVIL, "--output", EVIL), ("rules", "lint", EVIL),
        ("rules", "test", EVIL),
        ("rules", "explain", EVIL, EVIL), ("rules", "explain", "llava-v1.5", EVIL, "--as", EVIL),
        ("inspect", f"{EVIL}/x@y"),
    ],
    ids=lambda arguments: " ".join(arguments).partition("\x1b")[0],
)  # fmt: skip
def test_arguments(arguments: tuple[str, ...], main: Main) -> None:
    assert harmless(main(*arguments)).code


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_files_that_cannot_be_read(name: str, here: Path, main: Main) -> None:
    """Names of tensors and of files in an index."""
    folder = Path(f"{EVIL_PATH}-bad")
    folder.mkdir()
    if name.endswith("bin"):
        torch.save({EVIL: torch.zeros(2), EVIL + "x": 3}, folder / name)
    else:
        (folder / name).write_bytes(
            b"\x40\0\0\0\0\0\0\0" + json.dumps({EVIL: 3}).encode()[:64].ljust(64)
        )
    harmless(main("inspect", folder))
    harmless(main("inspect", folder / name))
    harmless(main("apply", "llava-v1.5", "--source", folder, *TOWER, "--dry-run"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {EVIL: EVIL, "a": f"../{EVIL}"}})
    )
    harmless(main("inspect", folder))


def test_an_error_of_our_own(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError(EVIL)

    monkeypatch.setattr("llava_remap.rulefile.shipped_list", fail)
    ran = harmless(main("rules", "list"), "\\x1b[31m")
    assert ran.code
    assert not beside_progress(ran.out)
