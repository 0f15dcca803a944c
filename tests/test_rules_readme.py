"""The worked example of rules/README.md: every command is run, every output and every file is as
the page says.

After a change of what is printed: `python -m tests.test_rules_readme` writes the page anew; read
the difference.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from typer.testing import CliRunner

from llava_remap.cli.commands import app
from tests.conftest import DATA

PAGE = Path(__file__).parents[1] / "rules" / "README.md"
BLOCK = re.compile(r"```(console|yaml)\n(.*?)```\n", re.DOTALL)
#: The first lines of a block of YAML that say what it is.
WRITE, NOW = re.compile(r"# write (\S+)\n"), re.compile(r"# is now (\S+)\n")


def played(page: str) -> str:
    """The page with what its commands print and its files hold when they are run, in order, in
    the current folder.
    """
    for source in ("fork", "tiny/clip-vit-tiny-patch14-28"):
        shutil.copytree(DATA / source, Path("tests/data") / source)

    def block(found: re.Match[str]) -> str:
        kind, content = found.groups()
        if kind == "console":
            content = "".join(
                f"$ {command}\n{output(command)}"
                for command in re.findall(r"^\$ (.*)$", content, re.MULTILINE)
            )
        elif named := WRITE.match(content):
            Path(named[1]).write_text(content[named.end() :])
        elif named := NOW.match(content):
            content = named[0] + Path(named[1]).read_text()
        return f"```{kind}\n{content}```\n"

    return BLOCK.sub(block, page)


def output(command: str) -> str:
    program, *arguments = command.split()
    assert program == "llava-remap"
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    # How long it took is the one thing that no page can foretell.
    said = re.sub(r"in \d+\.\d s", "in 2.5 s", ran.stdout + ran.stderr)
    said = re.sub(
        r"needs at most [\d.]+ [MG]B of memory", "needs at most 450 MB of memory", said
    )  # by what is imported already
    return re.sub(r"took .* of disk", "took 400 MB of memory at most, 487 kB of disk", said)


def test_the_page_is_true() -> None:
    page = PAGE.read_text()
    assert len(re.findall(r"^\$ llava-remap ", page, re.MULTILINE)) >= 10
    assert played(page) == page


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        new = played(PAGE.read_text())
    PAGE.write_text(new)
