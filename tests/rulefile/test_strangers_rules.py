"""Rule files of strangers: whatever is in them, a job ends soon, in bounded memory, and says
which line it is about.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_remap.core.problem import RemapError
from llava_remap.rulefile import load_rule_file, pattern
from tests.conftest import CLIP, RELEASED, Ran, Run

pytestmark = pytest.mark.torch  # whole jobs

HEAD = "schema: 1\nname: mine\nversion: 1.0.0\nsummary: x\nextends: [llava-v1.5.yaml]\n"
PICTURE = "{{ '<image>' }}"


def planned(run: Run, text: str) -> Ran:
    Path("mine.yaml").write_text(HEAD + text)
    return run(
        "apply",
        "mine.yaml",
        "--source",
        RELEASED / "safetensors",
        "--source",
        f"vision_tower={CLIP}",
        "--dry-run",
    )


def problem(text: str, head: str = HEAD) -> str:
    Path("mine.yaml").write_text(head + text)
    with pytest.raises(RemapError) as raised:
        load_rule_file("mine.yaml")
    return str(raised.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "s of processor time",
        ),
        ("{{ 'a' * 10000000000 }}", "MB of memory"),
        ("{{ 'a'|center(9000000000) }}", "MB of memory"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% "
            "endfor %}{{ n.x }}",
            "MB of memory",
        ),
        (
            "{% for i in range(90000) %}{{ 'a' * 100 }}{% endfor %}",
            "a prompt of 9000007 characters",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (
            "{% if 'What is it?' in messages|tojson %}{{ 'a' * 10000000000 }}{% endif %}",
            "MB of memory",
        ),
    ],
    ids=["loops", "product", "filter", "doubling", "length", "macro", "for one question"],
)
def test_a_chat_template_without_end(template: str, words: str, run: Run) -> None:
    ran = planned(run, f"processor: {{chat_template: {json.dumps(template + PICTURE)}}}\n")
    assert (ran.code, "LR605" in ran.out) == (1, True)
    assert "mine.yaml:6:28 the chat template" in ran.out
    assert words in " ".join(ran.out.split())


def test_a_chat_template_of_a_file_is_told_by_the_line_that_names_it(run: Run) -> None:
    Path("x.jinja").write_text("{{ 'a' * 10000000000 }}")
    ran = planned(run, "processor:\n  chat_templates:\n    vicuna:\n      files: [x.jinja]\n")
    assert (ran.code, "LR605" in ran.out, "mine.yaml:9:15 the chat template vicuna" in ran.out) == (
        1,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (
            "{config: {num_additional_image_tokens: {const: 100000000}}}",
            "num_additional_image_tokens",
        ),
        ("{config: {patch_size: {const: 0.0001}}}", "patch_size"),
        ("{config: {patch_size: {const: 0}}}", "patch_size"),
        (
            "{image_processor: {class: CLIPImageProcessor, config: {crop_size: {const: {height: "
            "28000, width: 28}}}}}",
            "crop_size",
        ),
        (
            "{image_processor: {class: CLIPImageProcessor, config: {size: {const: {shortest_edge: "
            "28000}}}}}",
            "size",
        ),
    ],
)
def test_a_processor_that_would_make_more_than_fits(text: str, key: str, run: Run) -> None:
    """The first ended the process: the tokenizers library aborts where memory is short."""
    ran = planned(run, f"processor: {text}\n")
    assert (ran.code, "LR605" in ran.out, f"the processor's {key} would be" in ran.out) == (
        1,
        True,
        True,
    )


def test_a_file_with_too_many_values() -> None:
    assert "mine.yaml:1:1 the file has more than 20000 values" in problem(
        "".join(f"unknown{i}: 1\n" for i in range(25_000))
    )


def test_only_so_many_mistakes_are_told_at_once() -> None:
    assert problem("".join(f"unknown{i}: 1\n" for i in range(5000))).count("unknown field") == 50


def test_a_file_that_extends_too_much() -> None:
    Path("part.yaml").write_text("schema: 1\n")
    head = f"schema: 1\nextends: [{', '.join(['part.yaml'] * 201)}]\n"
    assert "mine.yaml:2:2211 more than 200 entries of `extends`" in problem("", head)


def test_chat_templates_that_are_too_much_together() -> None:
    Path("x.jinja").write_text("{# " + "a" * 90_000 + " #}")
    text = (
        "processor: {chat_templates: {x: {when: {token: a}, files: "
        f"[{', '.join(['x.jinja'] * 12)}]}}}}}}\n"
    )
    assert "the chat templates have more than 1000000 bytes together" in problem(text)


def test_regexes_have_a_limit_together(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search may keep within its own limit, and there is one for every rule and name."""
    monkeypatch.setattr(pattern, "TOTAL_LIMIT", -1)
    ran = planned(run, "prepare: [{id: slow, match: '(a|b)+c$', replace: d}]\n")
    assert (
        ran.code,
        "LR206" in ran.err,
        "mine.yaml:6:11 the regex of `prepare/slow`" in ran.err,
    ) == (2, True, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("post_load: [{use: expand_embedings}]", "Did you mean `expand_embeddings`?"),
        ("post_load: [{use: os.system}]", "installed: expand_embeddings, identity_layer"),
        (
            "post_load: [{use: expand_embeddings, with: {pad_to_multiple: 8}}]",
            "Did you mean `pad_to_multiple_of`?",
        ),
    ],
)
def test_lint_knows_the_plug_ins_and_their_options(text: str, words: str, run: Run) -> None:
    Path("mine.yaml").write_text(HEAD + text)
    ran = run("rules", "lint", "mine.yaml")
    assert (ran.code, "mine.yaml:6:13" in ran.out, "LR212" in ran.out, words in ran.out) == (
        2,
        True,
        True,
        True,
    )
