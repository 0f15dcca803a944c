"""The picture of an HTML report in the documentation: `python -m tools.docs.report_picture`, with a
Chromium. The report is that of a LoRA fine-tune, planned from manifests alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from llava_remap.jobs.apply import plan
from llava_remap.report.html import plan_html
from tests.conftest import MANIFESTS
from tests.report.conftest import CHROMIUM
from tools.docs.pages import DOCS

PICTURE = DOCS / "guide" / "report.png"
SOURCES = {
    "model": MANIFESTS / "llava-v1.5-7b.released.json",
    "adapter": MANIFESTS / "parts" / "llava-v1.5-7b-lora.adapter_model.json",
    "projector": MANIFESTS / "parts" / "llava-v1.5-7b-lora.non_lora_trainables.json",
    "vision_tower": MANIFESTS / "clip-vit-large-patch14-336.json",
}


def main() -> None:
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as made, sync_playwright() as driver:
        job = plan("llava-v1.5", SOURCES, Path(made) / "out", dry_run=True)
        page_file = Path(made) / "report.html"
        page_file.write_text(plan_html(job), encoding="utf-8")
        chromium = next(filter(None, map(shutil.which, CHROMIUM)))
        with driver.chromium.launch(executable_path=chromium) as browser:
            page = browser.new_page(viewport={"width": 1240, "height": 960}, color_scheme="light")
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-ready]")
            page.screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
