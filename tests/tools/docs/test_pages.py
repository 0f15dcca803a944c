"""The documentation is true: commands are run, files are written, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llava_remap.rulefile import load_rule_file, shipped_rule_files
from tools.docs.pages import DOCS, ROOT, RUN, SHOWN, PageError, blocks, name_of, pages, prose
from tools.docs.play import commands, played

_LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = pytest.mark.parametrize("page", pages(), ids=name_of)


@PAGES
def test_commands_print_and_files_hold_what_the_page_says(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folder = tmp_path / "page"
    folder.mkdir()
    assert played(text, folder) == text


@PAGES
def test_every_block_has_a_language_that_is_run_or_only_shown(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {block.language for block in blocks(text)} <= {*RUN, *SHOWN}
    assert len(blocks(text)) * 2 == len(re.findall(r"^ *```", text, re.MULTILINE))


@PAGES
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"https?:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What a link into a page may name."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    slugs = {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def test_a_page_of_the_site_links_only_into_the_site() -> None:
    outside = [
        (name_of(page), link)
        for page in DOCS.rglob("*.md")
        for link in _LINK.findall(prose(page.read_text(encoding="utf-8")))
        if "://" not in link and DOCS not in (page.parent / link).resolve().parents
    ]
    assert outside == []


def test_every_page_stands_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    names = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert [
        name for name in names if not re.search(rf": {re.escape(name)}$", navigation, re.MULTILINE)
    ] == []


def test_the_readme_has_at_most_8_kb() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8000


@pytest.mark.parametrize("page", ["README.md", "docs/families.md"])
def test_shipped_rule_files_are_listed(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in shipped_rule_files():
        assert f"| `{name}` |" in text
        assert load_rule_file(name).text.summary


def page_of(block: str) -> str:
    return f"# A page\n\n{block}"


def test_another_output_is_replaced_by_what_is_printed(tmp_path: Path) -> None:
    said = page_of("```console\n$ llava-remap --version\n9.9.9\n```\n")
    assert played(said, tmp_path) == said.replace("9.9.9", "0.1.0")


def test_lines_that_are_left_out_may_be_any(tmp_path: Path) -> None:
    said = page_of(
        "```console\n$ llava-remap rules list\nbakllava                    1.0.0  …\n…\n```\n"
    )
    assert played(said, tmp_path) != said
    first = page_of(
        "```console\n$ llava-remap --help\nUsage: llava-remap [OPTIONS] COMMAND [ARGS]...\n…\n```\n"
    )
    (tmp_path / "again").mkdir()
    assert played(first, tmp_path / "again") == first


def test_an_output_that_leaves_out_everything_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PageError, match="shows nothing"):
        played(page_of("```console\n$ llava-remap --version\n…\n```\n"), tmp_path)


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ("```sh\nllava-remap inspect ./nothing\n```\n", "ends with 3"),
        ("```sh\nrm -rf /\n```\n", "don't run rm"),
        ("<!-- not run: why -->\n```sh\nmake nothing\n```\n", "has no"),
        ("<!-- not run: why -->\n```sh\nllava-remap apply x --nothing\n```\n", "No such option"),
        ("<!-- not run: why -->\n```sh\nllava-remap nothing\n```\n", "no command nothing"),
        ("<!-- not run: -->\n```sh\nmake test\n```\n", "no such comment"),
        ("<!-- shown: x -->\n```yaml\na: 1\n```\n", "no such comment"),
        ("```python\nassert 1 > 2, 'python'\n```\n", "python"),
    ],
)
def test_what_a_page_can_get_wrong(block: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=told):
        played(page_of(block), tmp_path)


def test_commands_of_a_block() -> None:
    block = "$ llava-remap apply x \\\n    --source y\nprinted\n\nmore\n$ make demo\n"
    assert commands(block) == [
        ("llava-remap apply x \\\n    --source y", "printed\n\nmore\n"),
        ("make demo", ""),
    ]
    assert commands("make test\nmake check\n") == [("make test", ""), ("make check", "")]
