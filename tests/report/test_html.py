"""The page of a report: what it says of every tensor, and that what others wrote is only text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from llava_remap.core.problem import Problem
from llava_remap.jobs.apply import plan
from llava_remap.jobs.job import Job
from llava_remap.report.html import plan_html, refusal_html
from llava_remap.report.html.flow import flow, modules
from llava_remap.report.html.rows import BAD, STATUSES, rows
from llava_remap.report.html.rule_lines import rule_lines
from tests.conftest import CLIP, MANIFESTS, RELEASED, Run
from tools.docs.pages import ROOT
from tools.report.build import LIBRARY, LICENSES

TOWER = f"vision_tower={MANIFESTS / 'clip-vit-large-patch14-336.json'}"
LORA = [
    MANIFESTS / "llava-v1.5-7b.released.json",
    f"adapter={MANIFESTS / 'parts' / 'llava-v1.5-7b-lora.adapter_model.json'}",
    f"projector={MANIFESTS / 'parts' / 'llava-v1.5-7b-lora.non_lora_trainables.json'}",
    TOWER,
]
#: What markup, terminals, templates or scripts would obey.
HOSTILE = (
    "</script><script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 2'>",
    "'\"><b>bold",
    "a\u202egnp.exe",
    "esc\x1b[31m",
    "line\nbreak\u2028after",
    "`tick` {{ 7 * 7 }} {% raw %}",
    "__proto__",
    "constructor.toString",
    "<!--<script>",
    "&lt;i&gt;",
)


def broken(manifest: Path) -> Path:
    """A manifest without two tensors, with a tensor that no rule maps, and with one of a shape that
    isn't the model's.
    """
    content = json.loads((MANIFESTS / "llava-v1.5-7b.json").read_text())
    tensors = content["tensors"]
    del tensors["model.layers.3.mlp.up_proj.weight"], tensors["model.layers.4.mlp.up_proj.weight"]
    tensors["model.extra.weight"] = {"dtype": "F16", "shape": [3, 5]}
    tensors["model.norm.weight"]["shape"] = [40]
    manifest.write_text(json.dumps(content))
    return manifest


class _Elements(HTMLParser):
    """The elements of a page, the text in them, and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags = Counter[str]()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module", params=["whole", "lora", "broken"])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    sources: list[Any] = {
        "whole": lambda: [MANIFESTS / "llava-v1.5-7b.json", TOWER],
        "lora": lambda: LORA,
        "broken": lambda: [broken(tmp_path_factory.mktemp("broken") / "m.json"), TOWER],
    }[request.param]()
    return plan("llava-v1.5", list(map(str, sources)), "out", dry_run=True, dtype="bfloat16")


def test_every_source_tensor_and_every_parameter_has_its_row(job: Job) -> None:
    found = rows(job)
    stored = {(name, tensor) for name, c in job.checkpoints.items() for tensor in c.catalog}
    taken = [(origin.source, origin.name) for row in found for origin, _ in row.taken]
    assert set(taken) == stored
    assert len(taken) == len(stored)
    targets = [row.target for row in found if row.target]
    assert {row.produced for row in found} == {""}
    assert sorted(targets) == list(job.plan.target_names)
    assert {row.status for row in found} <= STATUSES.keys()


def test_rows_agree_with_the_plan(job: Job) -> None:
    found, document = Counter(row.status for row in rows(job)), job.to_json()
    for status in ("unmapped", "missing", "mismatched", "dropped"):
        assert found[status] == len(document[status])
    moved = [entry for entry in document["mapped"] if not entry["then"]]
    wrong = {entry["target"] for entry in document["mismatched"]}
    assert found["mapped"] == sum(entry["target"] not in wrong for entry in moved)
    bad = [row.is_bad for row in rows(job)]
    assert bad == sorted(bad, reverse=True)
    assert any(bad) is not job.plan.complete


def test_the_picture_has_every_byte(job: Job) -> None:
    """What goes into rules or past them is what the sources have; what is red is a problem."""
    found = rows(job)
    picture = flow(found)
    nodes = picture["nodes"]
    read = sum(nbytes for start, _, nbytes, _ in picture["links"] if nodes[start]["column"] == 0)
    lost = sum(row.nbytes for row in found if row.status == "missing")
    assert read == lost + sum(checkpoint.nbytes for checkpoint in job.checkpoints.values())
    written = [
        nbytes
        for _, end, nbytes, _ in picture["links"]
        if nodes[end]["column"] == 2 and nodes[end]["tone"] == "module"
    ]
    assert sum(written) == lost + job.plan.nbytes_write
    red = {node["label"] for node in nodes if node["tone"] == "bad"}
    assert red == {row.status for row in found if row.status in ("missing", "unmapped")}
    assert max(Counter(node["column"] for node in nodes).values()) < 25


def test_rule_lines_are_those_of_the_files(job: Job) -> None:
    """Each line that took names has the rule's id in it, and the counts are all that were taken."""
    files = rule_lines(job.rules, job.plan, rows(job))
    assert [file.name for file in files] == [name for name, _ in reversed(job.rules.texts)]
    assert ["\n".join(line.text for line in file.lines) for file in files] == [
        text for _, text in reversed(job.rules.texts)
    ]
    taken = {line.rule: line.taken for file in files for line in file.lines if line.taken}
    for file in files:
        for line in file.lines:
            assert line.rule.partition("/")[2] in line.text
    steps = Counter(rule for row in rows(job) for rule in row.rules)
    assert taken == steps | Counter(f"post_load/{change.use}" for change in job.plan.post_load)


def test_modules_divide_the_largest_and_fold_numbers() -> None:
    names = {
        ("m", "layers", str(layer), kind, "weight"): size
        for layer in range(40)
        for kind, size in (("big", 100), ("small", 1))
    }
    found = modules([*names.items(), (("m", "head", "weight"), 5), (("alone",), 1)], most=4)
    assert set(found.values()) == {
        ("m", "layers", "*", "big"),
        ("m", "layers", "*", "small"),
        ("m", "head"),
        ("alone",),
    }
    many = [((f"n{number}", "weight"), 1) for number in range(100)]
    assert set(modules(many, most=4).values()) == {()}


def test_what_others_wrote_is_only_text() -> None:
    """Names, facts, causes and fixes, in a page that a parser of HTML reads."""
    problems = [
        Problem("LR301", f"cause {text}", f"fix {text}", (text,), ((text, f"fact {text}"),))
        for text in HOSTILE
    ]
    page = refusal_html(problems, "plan")
    plain = _Elements(refusal_html([Problem("LR301", "cause", "fix", ("n",), (("n", "f"),))], "x"))
    read = _Elements(page)
    assert read.tags.keys() == plain.tags.keys()
    assert not read.tags["script"]
    assert {name for name, _ in read.attributes} == {name for name, _ in plain.attributes}
    assert all(letter.isprintable() or letter == "\n" for letter in page)
    said = "".join(read.texts)
    for text in ("</script><script>window.hit = 1</script>", r"a\u202egnp.exe", r"esc\x1b[31m"):
        assert said.count(text) >= 4


def test_a_page_loads_nothing_and_names_every_script(job: Job) -> None:
    page = plan_html(job)
    read = _Elements(page)
    [policy] = [value for name, value in read.attributes if "default-src" in value]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("'sha256-") == read.tags["script"] - 1  # the data is no script
    assert not {name for name, _ in read.attributes} & {"src", "onclick", "onload", "action"}
    assert {value for name, value in read.attributes if name == "href"} == {"#tensors"}
    assert plan_html(job) == page
    verdict = "Plan complete" if job.plan.complete else "Refused"
    assert f"<h1><span>{verdict}</span> llava-v1.5 " in page


def test_the_text_of_a_rule_file_is_only_text(tmp_path: Path) -> None:
    """As are its name, its summary, and the reasons of its drops."""
    mine = tmp_path / "mine.yaml"
    plain = _Elements(plan_html(_small(mine, "", "plain")))
    odd = "</script><script>window.hit = 1</script><img src=x onerror=alert(1)> {{ 7 * 7 }}"
    page = plan_html(_small(mine, f"# {odd} \u202eback\n", odd))
    read = _Elements(page)
    assert read.tags["script"] == plain.tags["script"]
    assert read.tags.keys() == plain.tags.keys()
    assert "\u202e" not in page
    said = "".join(read.texts)
    assert f"# {odd} \\u202eback" in said
    assert f"'{odd}'" in said


def _small(rules: Path, comment: str, reason: str) -> Job:
    rules.write_text(
        f"{comment}schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\nextends: [llava-v1.5.yaml]\n"
        "target: {class: LlavaForConditionalGeneration}\n"
        f"prepare: [{{id: gone, from: 'logit_scale', drop: '{reason}'}}]\n"
    )
    return plan(rules, [str(RELEASED / "sharded"), f"vision_tower={CLIP}"], "out", dry_run=True)


def _refused(tmp_path: Path) -> Iterator[tuple[list[object], int, str]]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "mine.yaml").write_text("schema: 1\nnames: [{id: a")
    yield ["llava-v1.6", "--source", source], 2, "is neither a file nor a shipped rule file"
    yield [source / "mine.yaml", "--source", source], 2, "not valid YAML"
    yield ["llava-v1.5", "--source", source], 3, "LR10"


def test_a_refusal_before_there_is_a_plan_has_a_report(run: Run, tmp_path: Path) -> None:
    for arguments, code, words in _refused(tmp_path):
        ran = run("apply", *arguments, "--report", "report.html")
        assert ran.code == code
        page = Path("report.html").read_text()
        assert "<h1><span>Refused</span> before there was a plan</h1>" in page
        assert run("apply", *arguments, "--report", "report.json").code == code
        document = json.loads(Path("report.json").read_text())
        assert document["complete"] is False
        for problem in document["problems"]:
            assert f'<b class="code">{problem["code"]}</b>' in page
        assert words in ran.err


@pytest.mark.parametrize(
    "report", ["source/report.html", "source/config.json", "out/report.html", "mine.html"]
)
def test_the_report_of_a_refusal_is_kept_out_of_sources_and_output(report: str, run: Run) -> None:
    """Nothing was opened: what the command line names is all that is known of the sources."""
    for folder in ("source", "out"):
        Path(folder).mkdir()
    Path("source/config.json").write_text("{}")
    Path("mine.html").write_text("<p>of somebody else")
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    ran = run("apply", "nope", "--source", "model=source", "--output", "out", "--report", report)
    assert ran.code == 4
    assert "LR200" in ran.err
    assert "LR508" in ran.err
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before


def test_the_page_of_a_result_has_the_digests_of_its_files(run: Run) -> None:
    from llava_remap.execute import FileDigest

    ran = run(
        *("apply", "llava-v1.5", "--source", RELEASED / "sharded"),
        *("--source", f"vision_tower={CLIP}", "--output", "out", "--report", "done.html"),
    )
    assert ran.code == 0
    page = Path("done.html").read_text()
    assert "<h1><span>Written</span> llava-v1.5 " in page
    for path in Path("out").iterdir():
        digest = FileDigest.of(path.read_bytes())
        assert f'<td class="name">{path.name}</td>' in page
        assert f"{digest.nbytes:,}" in page
        assert digest.xxh3_128 in page


def test_a_wheel_has_all_that_a_page_needs(tmp_path: Path) -> None:
    """The charting library comes with the licences of its parts, in the version that is pinned."""
    from hatchling.builders.wheel import WheelBuilder

    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with ZipFile(wheel) as opened:
        names = opened.namelist()
        library = opened.read(LIBRARY.relative_to(ROOT).as_posix()).decode()
        licences = opened.read(LICENSES.relative_to(ROOT).as_posix()).decode()
    assert any(name.endswith(f"licenses/{LICENSES.relative_to(ROOT)}") for name in names)
    for file in ("page.html.jinja", "page.css", "page.js"):
        assert f"llava_remap/report/html/{file}" in names
    lock = json.loads((ROOT / "tools" / "report" / "package-lock.json").read_text())
    for part in ("echarts", "zrender", "tslib"):
        version = lock["packages"][f"node_modules/{part}"]["version"]
        assert f"{part} {version}" in library.splitlines()[0]
        assert f"==== {part} {version}: " in licences
    assert "</script" not in library.lower()


def test_statuses_of_problems_come_first() -> None:
    assert tuple(STATUSES)[: len(BAD)] == BAD
