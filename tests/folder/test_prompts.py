"""The chat template that a folder gets, its prompts for conversations, and refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from llava_remap.jobs.apply import apply
from llava_remap.jobs.apply import plan as plan_job
from llava_remap.planning import Plan
from tests.conftest import CLIP, RELEASED, TINY, Changed, Run
from tests.original.convert import assemble
from tests.original.facts import family

TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
]
#: Families whose recorded checkpoints have tokenizers of every kind, with rule file and template.
CHOSEN = {
    "llava-1.5": ("llava-v1.5", "vicuna", {"token": "</s>"}),
    "llava-v1": ("llava-v1", "vicuna", {"token": "</s>"}),
    "llava-1.6-mistral": ("llava-next", "mistral", {"text_config.model_type": "mistral"}),
    "llava-med": ("llava-med-v1.5", "mistral", {"text_config.model_type": "mistral"}),
    "next-llama3": ("llava-next", "llama-3", {"token": "<|eot_id|>"}),
    "next-qwen": (
        "llava-next",
        "chatml-qwen",
        {"token": "<|im_start|>", "text_config.model_type": "qwen2"},
    ),
}


def source(name: str, folder: Path, **config: Any) -> list[str]:
    """The sources of a recorded family, with something changed in the config."""
    arguments = []
    for part, folders in family(name).sources.items():
        assemble(folders, folder / part)
        arguments.append(f"{part}={folder / part}")
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return arguments


def mine(extends: str, text: str = "") -> Path:
    path = Path("mine.yaml")
    path.write_text(
        f"schema: 1\nname: mine\nversion: 1.0.0\nsummary: one's own\nextends: [{extends}]\n{text}\n"
    )
    return path


def prompt(folder: str | Path, messages: list[dict[str, Any]] = TURNS, **more: Any) -> str:
    processor = AutoProcessor.from_pretrained(folder)
    return str(
        processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **more)
    )


@pytest.mark.parametrize("name", CHOSEN)
def test_plan_and_report_say_which_template_it_is_and_why(
    name: str, run: Run, tmp_path: Path
) -> None:
    rules, template, because = CHOSEN[name]
    arguments = [
        part for given in source(name, tmp_path / "source") for part in ("--source", given)
    ]
    ran = run("apply", rules, *arguments, "--output", "out", "--dry-run", "--format", "json")
    chosen = ran.json["chat_template"]
    assert (chosen["name"], chosen["because"], chosen["system_prompt_used"]) == (
        template,
        because,
        "on request",
    )
    assert chosen["system_prompt"] == (family(name).default_system or None)
    ran = run("apply", rules, *arguments, "--output", "out", "--dry-run")
    assert f"\nPrompt\n  {template}: " in ran.out
    assert all(
        str(value) in ran.out.split("\nPrompt\n")[1].split("\n")[0] for value in because.values()
    )


def test_llama_3_under_the_recipe_of_llava_1_5(tmp_path: Path) -> None:
    """It has turns of its own, LLaVA++'s: its first token stands in the text, and the system
    prompt is Vicuna's.
    """
    sources = source(
        "next-llama3", tmp_path / "source", image_aspect_ratio="pad", mm_patch_merge_type="flat"
    )
    apply("llava-v1.5", sources, "out")
    assert prompt("out", [{"role": "system", "content": "Be brief. "}, *TURNS]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief. <|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Sure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def without_turns(folder: Path) -> None:
    """A tokenizer with words and no token that could part turns."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["content"] = f"<special-{token['id']}>"
    names = {f"<special-{token['id']}>" for token in content["added_tokens"]}
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": min(names)}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink()


def test_a_tokenizer_that_no_template_is_for(run: Run, tmp_path: Path) -> None:
    """Not Vicuna's by default: it is refused, with what each template is for and what to write."""
    sources = source("next-llama3", tmp_path / "source")
    without_turns(tmp_path / "source" / "model")
    arguments = [part for given in sources for part in ("--source", given)]
    ran = run("apply", "llava-next", *arguments, "--output", "out")
    assert (ran.code, "LR413" in ran.out) == (1, True)
    assert "llama-3 is for token: <|eot_id|>" in ran.out
    assert "`processor: {chat_template: …}`" in ran.out
    rules = mine(
        "llava-next.yaml",
        "processor: {chat_template: '{% for m in messages %}{{ m.role }}: <image>{% endfor %}'}",
    )
    assert run("apply", rules, *arguments, "--output", "out").code == 0
    assert prompt("out", TURNS[:1]) == "user: <image>"


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("llava-1.5", "llava-v1.5"),
        ("llava-1.6-mistral", "llava-next"),
        ("llava-med", "llava-med-v1.5"),
        ("next-qwen", "llava-next"),
    ],
)
def test_markers_around_pictures_are_tokens_or_the_job_is_refused(
    name: str, rules: str, run: Run, tmp_path: Path
) -> None:
    """`mm_use_im_start_end` counts in every family."""
    sources = source(name, tmp_path / "source", mm_use_im_start_end=True)
    ran = run(
        "apply",
        rules,
        *[part for given in sources for part in ("--source", given)],
        "--output",
        "out",
    )
    assert (ran.code, "LR413" in ran.out, "`<im_start>`, `<im_end>`" in ran.out) == (1, True, True)
    assert not Path("out").exists()
    config = tmp_path / "source" / "model" / "tokenizer_config.json"
    content = json.loads(config.read_text())
    rows = json.loads((tmp_path / "source" / "model" / "config.json").read_text())["vocab_size"]
    if name == "next-qwen":  # it has spare rows
        first = max(map(int, content["added_tokens_decoder"])) + 1
        for number, token in enumerate(("<im_start>", "<im_end>")):
            content["added_tokens_decoder"][str(first + number)] = {
                "content": token,
                "special": True,
                "normalized": False,
            }
        config.write_text(json.dumps(content))
        assert first + 1 < rows
        apply(rules, sources, "out")
        assert "<|im_start|>user\n<im_start><image><im_end>\nWhat is it?<|im_end|>" in prompt("out")


def test_text_that_looks_like_a_special_token(run: Run) -> None:
    """It is taken for one, until the rule file says that it is text."""
    template = "processor: {chat_template: '<Image><image></Image>{{ messages | length }}'"
    arguments = (
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    ran = run("apply", mine("llava-v1.5.yaml", template + "}"), *arguments)
    assert (ran.code, "LR413" in ran.out, 'plain_text: ["<Image>", "</Image>"]' in ran.out) == (
        1,
        True,
        True,
    )
    ran = run(
        "apply",
        mine("llava-v1.5.yaml", template + ", plain_text: ['<Image>', '</Image>']}"),
        *arguments,
    )
    assert ran.code == 0, ran.out


def test_a_token_behind_the_last_turn_alone_is_one_too(run: Run) -> None:
    template = "{{ '<image>' }}{% if not add_generation_prompt %}<|end|>{% endif %}"
    rules = mine("llava-v1.5.yaml", f'processor: {{chat_template: "{template}"}}')
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (ran.code, "LR413" in ran.out, "`<|end|>`" in ran.out) == (1, True, True)


@pytest.mark.parametrize(
    ("name", "rules"),
    [("llava-1.5", "llava-v1.5"), ("next-qwen", "llava-next"), ("next-llama3", "llava-next")],
)
def test_the_system_prompt_always(name: str, rules: str, tmp_path: Path) -> None:
    """A conversation without a system message then begins as the research code's own does."""
    sources = source(name, tmp_path / "source")
    always = mine(f"{rules}.yaml", "processor: {system_prompt: always}")
    apply(shown("with-system-prompt") if rules == "llava-v1.5" else always, sources, "always")
    apply(rules, sources, "out")
    system = family(name).default_system
    told = [{"role": "system", "content": system}, *TURNS]
    assert prompt("always") == prompt("out", told) != prompt("out")
    assert prompt("out", system_prompt=system) == prompt("out", told)
    assert (
        prompt("always", [{"role": "system", "content": "Be brief."}, *TURNS]).count("Be brief.")
        == 1
    )
    assert system not in prompt("always", [{"role": "system", "content": "Be brief."}, *TURNS])
    assert prompt("always", system_prompt="Be kind.") == prompt(
        "out", [{"role": "system", "content": "Be kind."}, *TURNS]
    )


def test_always_does_not_go_with_a_template_of_ones_own(run: Run) -> None:
    ran = run(
        "rules",
        "lint",
        mine("llava-v1.5.yaml", "processor: {system_prompt: always, chat_template: x}"),
    )
    assert (
        ran.code,
        "write the system prompt into the `chat_template` itself" in ran.out + ran.err,
    ) == (2, True)


def test_a_template_that_writes_no_picture(run: Run) -> None:
    rules = mine("llava-v1.5.yaml", "processor: {chat_template: 'Q{{ messages | length }}A'}")
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (ran.code, "chat_template writes no `<image>`" in ran.out) == (1, True)


def test_a_template_that_is_no_jinja_is_told_with_its_line(run: Run) -> None:
    Path("own.jinja").write_text("{%- for m in messages -%}\n{{ m.role }\n{%- endfor -%}")
    template = "{when: {token: </s>}, files: [own.jinja]}"
    rules = mine("llava-v1.5.yaml", f"processor: {{chat_templates: {{vicuna: {template}}}}}")
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert (ran.code, "the chat template vicuna, line " in ran.out) == (1, True)


def shown(name: str) -> Path:
    """A rule file that docs/research-code.md shows."""
    page = (TINY.parents[2] / "docs" / "research-code.md").read_text(encoding="utf-8")
    [text] = [
        block
        for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
        if f"name: {name}\n" in block
    ]
    path = Path(f"{name}.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_of_ones_own_that_the_docs_show(tmp_path: Path) -> None:
    """`llava_v0` of the research code."""
    apply(shown("llava-v0"), source("llava-v1", tmp_path / "source"), "out")
    told = [{"role": "system", "content": "SYSTEM"}, *TURNS]
    assert prompt("out", told) == (
        "SYSTEM###Human: <image>\nWhat is it?###Assistant: A cat.###Human: Sure?###Assistant:"
    )


def test_llama_2_by_a_rule_file_of_three_lines(tmp_path: Path) -> None:
    """Between turns it has both tokens, as `llava_llama_2` of the research code."""
    apply(shown("llava-llama-2"), source("llava-v1", tmp_path / "source"), "out")
    told = [{"role": "system", "content": "Be brief."}, *TURNS]
    assert prompt("out", told) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\n"
        "What is it? [/INST] A cat. </s><s>[INST] Sure? [/INST]"
    )


def test_a_template_of_ones_own_counts_before_all_others(run: Run) -> None:
    rules = mine(
        "llava-v1.5.yaml", "processor: {chat_template: 'Q<image>{{ messages | length }}A'}"
    )
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert ran.code == 0, ran.out
    assert "\nPrompt\n  chat_template: the rule file's, for every tokenizer\n" in ran.out
    assert prompt("out") == "Q<image>3A"


def test_a_template_in_files_beside_the_rule_file(run: Run) -> None:
    Path("own.jinja").write_text(
        "{%- for m in messages -%}{{ start + content(m) + '</s>' }}{%- endfor -%}"
    )
    template = (
        "{when: {token: </s>}, files: [chat/pictures-first.jinja, own.jinja], values: "
        "{start: '> '}}"
    )
    rules = mine("llava-v1.5.yaml", f"processor: {{chat_templates: {{vicuna: {template}}}}}")
    ran = run(
        "apply",
        rules,
        "--source",
        RELEASED / "bin",
        "--source",
        f"vision_tower={CLIP}",
        "--output",
        "out",
    )
    assert ran.code == 0, ran.out
    assert prompt("out") == "> <image>\nWhat is it?</s>> A cat.</s>> Sure?</s>"
    record = json.loads(Path("out/llava_remap.json").read_text())
    assert "own.jinja" in [file["name"] for file in record["rules"]["files"]]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{when: {token: </s>}}", "needs either `files` or a `text`"),
        ("{text: x}", "needs a `when`"),
        (
            "{when: {token: </s>}, text: x, files: [chat/vicuna.jinja]}",
            "has both `files` and a `text`",
        ),
        (
            "{when: {token: </s>}, files: [chat/vicunja.jinja]}",
            "no file `chat/vicunja.jinja` is beside mine.yaml",
        ),
        ("{when: {token: </s>}, files: [/etc/passwd]}", "a rule file can't take in any file"),
        ("{when: {token: </s>}, files: [../x.jinja]}", "a rule file can't take in any file"),
        ("{when: {token: </s>}, files: [large.jinja]}", "more than 100000 bytes"),
        ("{when: {token: </s>}, files: [latin.jinja]}", "isn't UTF-8"),
    ],
)
def test_templates_that_cannot_be(template: str, words: str, run: Run) -> None:
    Path("large.jinja").write_text("x" * 100_001)
    Path("latin.jinja").write_bytes(b"\xff")
    ran = run(
        "rules",
        "lint",
        mine("llava-v1.5.yaml", f"processor: {{chat_templates: {{new: {template}}}}}"),
    )
    assert (ran.code, words in ran.out + ran.err) == (2, True), ran.out + ran.err
    assert "mine.yaml:6:" in ran.out + ran.err


def generation(change: Callable[[dict[str, Any]], object], folder: Path) -> Any:
    """The generation config that is written for a Llama 3 whose own was changed, and the plan."""
    sources = source("next-llama3", folder)
    path = folder / "model" / "generation_config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    job = plan_job("llava-next", sources, "out", dry_run=True)
    return json.loads(job.small_files["generation_config.json"])["eos_token_id"], job.plan


def told(plan: Plan, code: str) -> list[str]:
    return [note.cause for note in plan.notes if note.code == code]


@pytest.mark.parametrize(
    ("eos", "wanted"),
    [(1001, [1001, 1005]), ([1001], [1001, 1005]), (1005, 1005), ([1005, 1001], [1005, 1001])],
)
def test_generation_stops_where_a_turn_ends(eos: Any, wanted: Any, tmp_path: Path) -> None:
    """`<|eot_id|>` is 1005; a base model's config names `<|end_of_text|>`, 1001, alone."""
    written, plan = generation(
        lambda content: content.update(eos_token_id=eos), tmp_path / "source"
    )
    assert written == wanted
    assert bool(told(plan, "LR609")) == (wanted != eos)


def test_auto_map_is_taken_out(changed: Changed, tmp_path: Path) -> None:
    """The folder has no code, so none of its files names any."""
    checkpoint = changed()
    tower = tmp_path / "tower"
    shutil.copytree(CLIP, tower)
    for path in (
        checkpoint / "tokenizer_config.json", checkpoint / "generation_config.json",
        tower / "preprocessor_config.json"
    ):  # fmt: skip
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoThing": "thing.Thing"}})
        )
    apply("llava-v1.5", [str(checkpoint), f"vision_tower={tower}"], "out")
    assert [
        path.name
        for path in Path("out").glob("*.json")
        if "auto_map" in json.loads(path.read_text())
    ] == []


def test_what_two_templates_share_stands_once() -> None:
    """Every shipped template file is one that a rule file names, and no two hold the same lines."""
    folder = TINY.parents[2] / "rules" / "chat"
    lines = [
        line
        for path in folder.glob("*.jinja")
        for line in path.read_text().splitlines()
        if len(line) > 60
    ]
    assert len(lines) == len(set(lines))
