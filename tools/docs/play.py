"""Runs a page of the documentation: commands, files and Python, in order, in one folder.

`python -m tools.docs.play [PAGE …]` writes the outputs into the pages anew. Read the difference
before you commit it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llava_remap.cli.commands import app
from llava_remap.rulefile import load_rule_file
from tests.conftest import CLIP, DATA, RELEASED, TINY, beside_progress
from tools.docs.pages import ROOT, Block, PageError, name_of, pages, with_blocks

#: A line of an output that stands for any number of lines.
ELLIPSIS = "…"
#: Facts of one run on one machine, and how the pages write them.
_VARYING = (
    (r"in \d+\.\d s", "in 2.5 s"),
    (r"needs at most [\d.]+ [MG]B of memory", "needs at most 450 MB of memory"),
    (r"took .* of disk", "took 400 MB of memory at most, 487 kB of disk"),
)
#: Folders that the pages take for granted: small checkpoints under the names of large ones.
_FOLDERS = {
    "llava-v1.5-7b": RELEASED / "sharded",
    "clip-vit-large-patch14-336": CLIP,
    "llava-v1.5-7b-lora": TINY / "llava-v1.5-lora",
    "llava-v1.5-7b-pretrain": TINY / "llava-v1.5" / "pretrain_projector_only",
    "tests/data/fork": DATA / "fork",
    "tests/data/tiny/llava-v1.5/released/sharded": RELEASED / "sharded",
    "tests/data/tiny/clip-vit-tiny-patch14-28": CLIP,
}


def played(page: str, folder: Path) -> str:
    """The page with what its commands print and its shown files hold, run in an empty folder."""
    set_up(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return with_blocks(page, _played_block)
    finally:
        os.chdir(before)


def set_up(folder: Path) -> None:
    """Give a page's folder what the pages take for granted: checkpoints, rules, `tools/load.py`."""
    for name, source in _FOLDERS.items():
        shutil.copytree(source, folder / name)
    (folder / "rules").symlink_to(ROOT / "rules")
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "load.py", folder / "tools")
    _write_language_model(folder / "vicuna-7b-v1.5")


def _write_language_model(folder: Path) -> None:
    """A plain Llama: the small checkpoint without its projector and without LLaVA's keys."""
    shutil.copytree(RELEASED / "safetensors", folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = {name: tensor for name, tensor in load_file(weights).items() if "mm_" not in name}
    save_file(tensors, weights, {"format": "pt"})
    content = json.loads(config.read_text())
    content = {
        key: value
        for key, value in content.items()
        if "mm_" not in key and key != "image_aspect_ratio"
    }
    content |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config.write_text(json.dumps(content))


def _played_block(block: Block) -> str:
    if block.not_run:
        for command, _ in commands(block.content):
            check_words(command)
    elif block.shows:
        here = Path(block.shows)
        return (here if here.exists() else ROOT / block.shows).read_text(encoding="utf-8")
    elif block.language == "console":
        return "".join(_answered(command, said) for command, said in commands(block.content))
    elif block.language == "sh":
        for command, _ in commands(block.content):
            _run_quietly(command)
    elif block.title:
        Path(block.title).write_text(block.content, encoding="utf-8")
    elif block.language == "python":
        _run_python(block.content)
    elif block.language == "yaml":
        _read_yaml(block.content)
    return block.content


def commands(console: str) -> list[tuple[str, str]]:
    """The commands of a block, each as it stands there, and what the page says that it prints.

    A block without prompts has nothing but commands.
    """
    if not console.startswith("$ "):
        console = re.sub(r"^(?=\S)", "$ ", console, flags=re.MULTILINE)
    return re.findall(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", console, re.MULTILINE)


def _answered(command: str, said: str) -> str:
    """The command and its output; the page's own text stays if it only leaves lines out."""
    if said.strip() == ELLIPSIS:
        raise PageError(f"{command}: a block that shows nothing of the output should be `sh`")
    _, output = run(command)
    pattern = "".join(
        r"(?:.*\n)*" if line == ELLIPSIS else re.escape(line + "\n") for line in said.splitlines()
    )
    return f"$ {command}\n{said if re.fullmatch(pattern, output) else output}"


def _run_quietly(command: str) -> None:
    code, output = run(command)
    if code:
        raise PageError(f"{command} ends with {code}:\n{output}")


def run(command: str) -> tuple[int, str]:
    """The exit code and the output of a command, with fixed figures where runs vary."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    if not words:
        return 0, ""
    target = None
    if len(words) > 2 and words[-2] == ">":
        words, target = words[:-2], words[-1]
    program, *arguments = words
    if program == "llava-remap":
        ran = CliRunner().invoke(app, arguments, prog_name="llava-remap", catch_exceptions=False)
        code, output = ran.exit_code, ran.stdout + beside_progress(ran.stderr)
    elif program == "python":
        code, output = 0, _run_script(arguments)
    elif program == "make":
        code, output = _run_make(arguments)
    else:
        raise PageError(f"{command}: the tests don't run {program}; say `not run` and why")
    if target is not None:
        Path(target).write_text(output, encoding="utf-8")
        output = ""
    for varying, fixed in _VARYING:
        output = re.sub(varying, fixed, output)
    return code, output


def _run_make(arguments: list[str]) -> tuple[int, str]:
    """The commands of a target of the Makefile, what is installed taken for up to date."""
    dry = ["make", "-n", "-C", str(ROOT), "--no-print-directory", "-o", "install", *arguments]
    lines = subprocess.run(dry, check=True, capture_output=True, text=True).stdout
    output = ""
    for line in lines.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        if program == "rm":
            shutil.rmtree(words[-1], ignore_errors=True)
            continue
        code, more = run(shlex.join([Path(program).name, *words]))
        output += more
        if code:
            return code, output
    return 0, output


def _run_script(arguments: list[str]) -> str:
    printed = io.StringIO()
    argv, sys.argv = sys.argv, arguments
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.argv = argv
    return printed.getvalue()


def _run_python(program: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(program, "<page>", "exec"), {"__name__": "__page__"})


def _read_yaml(text: str) -> None:
    """A whole rule file is read as one; of a part, only the YAML is."""
    content = yaml.safe_load(text)
    if isinstance(content, dict) and "schema" in content:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=Path.cwd()) as file:
            file.write(text)
            file.flush()
            load_rule_file(file.name)


def check_words(command: str) -> None:
    """A command that isn't run is at least one that the command line, or the Makefile, knows."""
    program, *arguments = shlex.split(command.replace("\\\n", " "), comments=True) or [""]
    if program == "make":
        known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        if unknown := [word for word in arguments if "=" not in word and word not in known]:
            raise PageError(f"{command}: the Makefile has no {unknown}")
    elif program == "llava-remap":
        found: Any = typer.main.get_command(app)
        while hasattr(found, "commands"):
            word = arguments.pop(0)
            if word not in found.commands:
                raise PageError(f"{command}: there is no command {word}")
            found = found.commands[word]
        with found.make_context(found.name, arguments):
            pass


def main() -> None:
    """Write the outputs of the pages that are named, or of all, as they are now."""
    wanted = [Path(name).resolve() for name in sys.argv[1:]] or pages()
    for page in wanted:
        with tempfile.TemporaryDirectory() as folder:
            text = page.read_text(encoding="utf-8")
            new = played(text, Path(folder))
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"{name_of(page)}: written anew")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    main()
