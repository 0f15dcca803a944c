"""The page of a report as a browser shows it: nothing is loaded, nothing runs that isn't the
page's own, and a table of 70,000 tensors stays small.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llava_remap.core import printable
from llava_remap.jobs.apply import plan
from llava_remap.jobs.job import Job
from llava_remap.report.html import plan_html
from llava_remap.report.html.rows import rows
from tests.conftest import MANIFESTS
from tests.report.test_html import HOSTILE, broken

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: Rows that may be drawn: those that are seen, and some above and below.
DRAWN = 80


def _planned(folder: Path, model: Path, tower: Path) -> tuple[Job, Path]:
    """A planned job, and the file of its page."""
    job = plan("llava-v1.5", [str(model), f"vision_tower={tower}"], folder / "out", dry_run=True)
    (folder / "report.html").write_text(plan_html(job))
    return job, folder / "report.html"


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A tower with 69,000 tensors that nobody wants, some of them of hostile names."""
    folder = tmp_path_factory.mktemp("crowded")
    content = json.loads((MANIFESTS / "clip-vit-large-patch14-336.json").read_text())
    tensor: dict[str, Any] = {"dtype": "F16", "shape": [16, 16]}
    numbered = (f"layers.{n // 1000}.experts.{n % 1000}.weight" for n in range(69_000))
    content["tensors"] |= dict.fromkeys((*numbered, *HOSTILE), tensor)
    (folder / "tower.json").write_text(json.dumps(content))
    return _planned(folder, MANIFESTS / "llava-v1.5-7b.json", folder / "tower.json")


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    folder = tmp_path_factory.mktemp("refused")
    tower = MANIFESTS / "clip-vit-large-patch14-336.json"
    return _planned(folder, broken(folder / "model.json"), tower)


@contextmanager
def opened(browser: Browser, file: Path, **options: Any) -> Iterator[Page]:
    """The page of a report, ready; fails for an error, a dialog, or a request for anything else."""
    seen: list[str] = []
    with browser.new_context(viewport={"width": 1400, "height": 900}, **options) as context:
        page = context.new_page()
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: seen.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        yield page
        assert page.evaluate("window.hit") is None
    assert seen == [f"request: {file.as_uri()}"]


def _count(page: Page) -> int:
    return int(page.inner_text("#count").split(" of ")[0].replace(",", ""))


def _drawn(page: Page) -> list[list[str]]:
    """The texts of the rows that are drawn."""
    found = page.locator("#table tbody tr[data-row]").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert isinstance(found, list)
    assert 0 < len(found) <= DRAWN
    return found


def test_a_table_of_70_000_tensors_draws_only_what_is_seen(
    browser: Browser, crowded: tuple[Job, Path]
) -> None:
    job, file = crowded
    every = rows(job)
    assert len(every) > 70_000
    with opened(browser, file) as page:
        assert _count(page) == len(every)
        assert _drawn(page)[0][3] == every[0].target
        for at in (0.3, 0.7, 1):
            page.locator("#table").evaluate(
                """async (table, at) => {
                  table.scrollTop = at * table.scrollHeight;
                  for (const _ of 'ab') await new Promise(requestAnimationFrame);
                }""",
                at,
            )
            first = page.locator("#table tr[data-row]").first.get_attribute("data-row")
            assert int(first or 0) > at * len(every) - DRAWN
            _drawn(page)
        assert _drawn(page)[-1][2] == printable(every[-1].taken[0][0].name)
        page.fill("#search", "experts.77.weight layers.5.")
        assert [row[2] for row in _drawn(page)] == ["layers.5.experts.77.weight"]
        assert page.locator("*").count() < 6000


def test_filters_agree_with_the_plan(browser: Browser, crowded: tuple[Job, Path]) -> None:
    from playwright.sync_api import expect

    job, file = crowded
    every = rows(job)
    with opened(browser, file) as page:
        for column, value in (
            *(("status", status) for status in ("mapped", "computed", "dropped", "not used")),
            *(("component", name) for name in ("vision_tower", "multi_modal_projector")),
        ):
            page.select_option(f"#{column}", value)
            wanted = [row for row in every if getattr(row, column) == value]
            assert _count(page) == len(wanted)
            assert _drawn(page)[0][0] == wanted[0].status
            page.click("#filters button")
            expect(page.locator("#count")).to_contain_text("70,")
        for rule, count in Counter(rule for row in every for rule in row.rules).items():
            page.click(f"a[data-rule='{rule}']")
            assert _count(page) == count
            assert page.locator("#rules").input_value() == rule
        page.click("#filters button")
        expect(page.locator("#count")).to_contain_text("70,")
        page.select_option("#component", "vision_tower")
        page.fill("#search", "LAYERS.3. bias")
        wanted = [r for r in every if "encoder.layers.3." in r.target and r.target.endswith("bias")]
        assert sorted(row[3] for row in _drawn(page)) == sorted(row.target for row in wanted)
        page.click("#table th:has-text('Size')")
        page.click("#table th:has-text('Size')")
        assert _drawn(page)[0][3] == max(wanted, key=lambda row: row.nbytes).target
        page.click("#table tbody tr[data-row] >> nth=0")
        assert max(wanted, key=lambda row: row.nbytes).target in page.inner_text("#details")


def test_hostile_names_are_only_text(browser: Browser, crowded: tuple[Job, Path]) -> None:
    _, file = crowded
    with opened(browser, file) as page:
        for name in HOSTILE:
            shown = printable(name)
            page.fill("#search", shown)
            words = shown.lower().split()
            found = [row[2] for row in _drawn(page)]
            assert shown in found
            assert all(word in one.lower() for one in found for word in words)
            page.click(f"#table tbody tr[data-row] >> nth={found.index(shown)}")
            assert shown in page.locator("#details dd").all_text_contents()
            assert shown in page.locator("#short td.name").all_text_contents()
        assert page.locator("img, b:has-text('bold')").count() == 0


def test_the_policy_of_the_page_forbids_other_scripts_and_the_network(
    browser: Browser, crowded: tuple[Job, Path]
) -> None:
    """Even if something came through, it wouldn't run."""
    _, file = crowded
    with browser.new_context() as context:
        page = context.new_page()
        asked: list[str] = []
        blocked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: blocked.append(f"{request.url} {request.failure}"))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        refused = page.evaluate(
            """async () => {
              const refused = [];
              const refuse = (event) => refused.push(event.effectiveDirective);
              addEventListener('securitypolicyviolation', refuse);
              const script = document.createElement('script');
              script.textContent = 'window.hit = 1';
              document.body.append(script);
              document.body.insertAdjacentHTML(
                'beforeend', '<img src="https://example.org/x" onerror="window.hit = 2">');
              await fetch('https://example.org/y').catch(() => {});
              await new Promise((done) => setTimeout(done));
              return refused;
            }"""
        )
        assert {"script-src-elem", "script-src-attr", "img-src", "connect-src"} <= set(refused)
        assert page.evaluate("window.hit") is None
        assert set(blocked) >= {f"{url} csp" for url in asked[1:]}


def test_the_picture_shows_what_is_missing_in_red(
    browser: Browser, refused: tuple[Job, Path]
) -> None:
    job, file = refused
    with opened(browser, file) as page:
        assert page.inner_text("h1").split() == ["Refused", "llava-v1.5", job.plan.rules_version]
        assert page.locator("main section").first.get_attribute("id") == "problems"
        labels = page.locator("#picture svg text").all_text_contents()
        assert {"missing", "unmapped", "dropped", "names/text-layers"} <= set(labels)
        red = page.locator("#picture svg path[fill='#d93838']")
        links = [entry.target for entry in job.plan.missing]
        assert red.count() >= 2 + len({name.split(".")[2] for name in links})
        first = _drawn(page)[0]
        assert first[0] == "missing"
        page.locator("#picture svg text", has_text="unmapped").click()
        page.locator("#picture svg path[fill='#d93838']").last.hover()


def test_a_browser_that_cannot_read_the_data_says_so(
    browser: Browser, refused: tuple[Job, Path]
) -> None:
    """Every name is in the page all the same."""
    with browser.new_context() as context:
        page = context.new_page()
        page.add_init_script("delete window.DecompressionStream")
        page.goto(refused[1].as_uri())
        page.wait_for_selector("#tensors p:has-text('DecompressionStream is not defined')")
        assert page.locator("#short").inner_text().count("unmapped") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_as_the_reader_has_it(
    scheme: Any, browser: Browser, refused: tuple[Job, Path]
) -> None:
    colour = "element => getComputedStyle(element)[{0!r}].match(/[0-9]+/g).slice(0, 3).map(Number)"
    with opened(browser, refused[1], color_scheme=scheme) as page:

        def brightness(selector: str, of: str) -> float:
            found: list[int] = page.locator(selector).first.evaluate(colour.format(of))
            return sum(found) / len(found)

        is_dark = scheme == "dark"
        assert (brightness("body", "backgroundColor") < 60) is is_dark
        for selector in ("h2", "#parts td", "#count", "#problems code", "#rule-file pre"):
            assert (brightness(selector, "color") > 130) is is_dark
        assert (brightness("#picture svg text", "fill") > 200) is is_dark


def test_printed_all_names_are_there_in_light(browser: Browser, refused: tuple[Job, Path]) -> None:
    """The short table stands for the long one, and everything of it is on paper."""
    _, file = refused
    with opened(browser, file, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.locator("#tensors").is_visible()
        assert page.locator("#short table").is_visible()
        assert page.locator("#picture svg").is_visible()
        background = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
        assert background == "rgb(255, 255, 255)"
        cut = page.locator(".folded, .names").evaluate_all(
            "all => all.filter(one => one.scrollHeight > one.clientHeight + 1).length"
        )
        assert cut == 0
        assert page.pdf().startswith(b"%PDF")
