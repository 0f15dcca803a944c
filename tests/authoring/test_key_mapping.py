"""The rules as a `key_mapping`: the installed transformers takes names where the rules do, and
loads what `apply` writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.core_model_loading import WeightRenaming, apply_renamings

from llava_remap.authoring.key_mapping import KeyMapping, key_mapping
from llava_remap.jobs.apply import apply
from llava_remap.rewrite import compile_rules
from llava_remap.rulefile import RuleFile, load_rule_file
from tests.conftest import CLIP, MANIFESTS, TINY, Changed, Tensors
from tests.end_to_end.test_apply import interleave  # noqa: F401
from tests.rulefile.written import load


def mapped(rules: RuleFile) -> KeyMapping:
    return key_mapping(rules, compile_rules(rules))


LLAVA = TINY / "llava-v1.5"


def assert_equal(rules: RuleFile, mapping: KeyMapping, names: Iterable[str]) -> None:
    """By transformers' own code, the model's own renamings left out. What no rule takes stays."""
    renamings = [
        WeightRenaming(source_patterns=pattern, target_patterns=to)
        for pattern, to in mapping.patterns.items()
    ]
    program = compile_rules(rules)
    for name in names:
        rewrite = program.rewrite(name)
        dropped = rewrite.reason is not None
        wanted = f".dropped.{rewrite.prepared}" if dropped else rewrite.target or rewrite.prepared
        assert apply_renamings(name, renamings) == wanted, name


@pytest.mark.parametrize("family", ["llava-v1.5", "llava-interleave"])
@pytest.mark.parametrize(
    "wrapper", ["", "module.", "base_model.model.", "module.base_model.model."]
)
def test_every_name_of_the_manifests(family: str, wrapper: str) -> None:
    """Those of other families too."""
    rules = load_rule_file(family)
    names = {
        wrapper + name
        for file in MANIFESTS.glob("*.json")
        for name in json.loads(file.read_text())["tensors"]
    }
    assert len(names) > 1000
    assert_equal(rules, mapped(rules), names)


def test_it_reads_as_the_rules_do() -> None:
    mapping = mapped(load_rule_file("llava-v1.5"))
    assert (
        mapping.patterns[r"^model\.layers\.(?=[0-9]+\.[^.].*$)"] == "language_model.model.layers."
    )
    assert r"^module\.(?=[^.].*$)" in list(mapping.patterns)[:5]
    conditional, wrappers, drops, tower, rows, config = mapping.remarks
    assert "names/unused-newline" in conditional
    assert "only at the start of a name (prepare/compiled, " in wrappers
    assert "prepare/inv-freq, prepare/position-ids" in drops
    assert "`vision_tower`" in tower
    assert "`expand_embeddings`" in rows
    assert "config.json" in config


#: Rules on names of a few letters, such that rules meet what other rules make.
RULES = {
    "swap": "names: [{id: a, from: 'a.{x}', to: 'b.{x}'}, {id: b, from: 'b.{x}', to: 'a.{x}'}]",
    "kept": "names: [{id: a, from: 'a.b', to: 'a.b'}, {id: b, from: '{x}.b', to: 'c.{x}.b'}]",
    "first": """names: [{id: a, from: 'a.b.{x}', to: 'c.{x}'}, {id: b, from: 'a.{r...}', to: 'b.{r}'},
                        {id: c, from: 'c.{x}', to: 'd.{x}'}]""",  # noqa: E501
    "chain": """prepare: [{id: a, from: 'a.{r...}', to: '{r}'}, {id: b, from: 'b.{r...}', to: 'a.{r}'}]
names: [{id: z, from: 'a.{r...}', to: 'n.{r}'}]""",  # noqa: E501
    "twice": """prepare: [{id: a, from: 'a.{r...}', to: '{r}'}, {id: b, from: 'a.{r...}', to: '{r}'}]
names: [{id: z, from: '{r...}', to: 'n.{r}'}]""",  # noqa: E501
    "drop first": "prepare: [{id: a, from: '{r...}.b', drop: why}]\n"
    "names: [{id: z, from: '{r...}', to: 'n.{r}'}]",
    "drop later": """names: [{id: z, from: 'a.{x}', to: 'b.{x}'}, {id: d, from: 'b.{r...}', drop: why},
                             {id: o, from: '{x}', to: 'c.{x}'}]""",  # noqa: E501
    "inside": "names: [{id: a, from: '{x}.a.{y}', to: 'c.{x}.a.b.{y}'}, {id: b, from: 'a{x}.{y}', "
    "to: '{y}.b'}]",
    "long inside": "names: [{id: a, from: 'a.{r...}.b.{x}', to: '{r}.b.c'}, {id: b, from: "
    "'{r...}c.{x}', to: 'd.{r}c.{x}'}]",
    "number": "names: [{id: a, from: 'a.{n:int}.{r...}', to: 'b{n}.{r}'}, {id: b, from: "
    "'{x}_{n}.{k:int}', to: '{k}'}]",
    "regex": r"names: [{id: a, match: '^a\.', replace: 'b.'}, {id: b, match: '^b\.a', replace: "
    r"'c'}]",
    "regex anywhere": r"names: [{id: a, match: '\.a', replace: '.b'}, {id: b, match: 'b|c$', "
    r"replace: 'a'}]",
    "regex group": r"""names: [{id: a, match: '^(a|b)\.c', replace: '\1.a'},
                               {id: b, match: '^a\.([ab]+)', replace: 'b.\g<1>'}]""",
    "regex drop": r"""prepare: [{id: a, match: 'a$', drop: why}]
names: [{id: z, match: '(?<=\.)b', replace: 'a'}]""",
    "regex end": r"""names: [{id: a, match: '^a', replace: 'b'}, {id: b, match: '^b?', replace: 'c'},
                             {id: c, match: '^$', replace: 'd'}]""",  # noqa: E501
}

SEGMENT = st.sampled_from(["a", "b", "c", "ab", "ba", "a1", "1", "20", "c_a"])
NAMES = st.lists(SEGMENT, min_size=1, max_size=5).map(".".join)


@pytest.mark.parametrize("kind", RULES)
def test_rules_that_meet_what_others_make(kind: str, tmp_path: Path) -> None:
    """The first match only, and a dropped name stays dropped, whatever the order."""
    rules = load(tmp_path, f"schema: 1\n{RULES[kind]}\n")
    mapping = mapped(rules)
    assert not [remark for remark in mapping.remarks if "is left out" in remark]

    @settings(deadline=None, max_examples=200)
    @given(NAMES)
    def equal(name: str) -> None:
        assert_equal(rules, mapping, [name])

    equal()


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("{id: x, from: 'a.{x}.b.{y}.c', to: 'b.{x}.c.{y}.d'}", "with other text between them"),
        ("{id: x, from: 'a.{x}.{y}', to: '{y}.{x}'}", "another order"),
        (r"{id: x, match: '^(a)\.(b)', replace: '\1.\2'}", "as a pattern"),
        (r"{id: x, match: '(a)\.b', replace: '\1'}", "isn't anchored at the start"),
        (r"{id: x, match: '^(a)?\.b', replace: '\1'}", "may have no value"),
        (r"{id: x, match: '^(a)\1', replace: 'b'}", "its own group"),
        (r"{id: x, match: '^.*.b', replace: 'b'}", "own wildcard"),
        (r"{id: x, match: '^\p{L}', replace: 'b'}", "doesn't know its regex"),
        (r"{id: x, from: 'a(b', to: 'b(b)'}", "as a pattern"),
        ("{id: x, from: 'a.{n:int}', to: 'b.{n+1}'}", "computes none"),
    ],
)
def test_what_cannot_be_said_is_told(rule: str, reason: str, tmp_path: Path) -> None:
    mapping = mapped(load(tmp_path, f"schema: 1\nnames: [{rule}]\n"))
    assert mapping.patterns == {}
    assert mapping.remarks[0].startswith("`names/x` is left out: ")
    assert reason in mapping.remarks[0]


def at_original_size(folder: Path) -> Any:
    """The config of a converted folder, with as many rows as the checkpoint has."""
    config = AutoConfig.from_pretrained(folder)
    config.text_config.vocab_size = 320
    config.text_config.pad_token_id = config.pad_token_id = None  # the new token's row isn't there
    return config


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def loads_what_apply_writes(family: str, source: Path, tower: Path) -> set[str]:
    """Load the original folder by the mapping; give the names that the loader reports as
    unexpected.
    """
    apply(family, [str(source), f"vision_tower={tower}"], "out")
    wanted = AutoModelForImageTextToText.from_pretrained("out", dtype="auto").state_dict()
    mapping = mapped(load_rule_file(family)).patterns
    model, info = LlavaForConditionalGeneration.from_pretrained(
        source,
        config=at_original_size(Path("out")),
        key_mapping=mapping,
        dtype="auto",
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert tensor.dtype == wanted[name].dtype
        assert bits(tensor) == bits(wanted[name][: len(tensor)]), name
    return set(info["unexpected_keys"])


@pytest.fixture
def dumped(tmp_path: Path) -> Callable[..., Path]:
    """LLaVA-1.5 as one state dict with its tower, in a form and under names that
    `from_pretrained` may find.
    """

    def make(form: str, wrapper: str = "") -> Path:
        folder = tmp_path / "original"
        shutil.copytree(LLAVA / "full_state_dict", folder)
        state = torch.load(folder / "model_state_dict.bin", weights_only=True)
        (folder / "model_state_dict.bin").unlink()
        state = {wrapper + name: tensor for name, tensor in state.items()}
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("wrapper", ["", "module.", "base_model.model."])
@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_a_dumped_state_dict(form: str, wrapper: str, dumped: Callable[..., Path]) -> None:
    """Nothing is unexpected: the dropped `inv_freq` are what the loader passes over."""
    assert loads_what_apply_writes("llava-v1.5", dumped(form, wrapper), CLIP) == set()


def test_without_the_mapping_nothing_fits(dumped: Callable[..., Path]) -> None:
    """So the mapping is what did it."""
    source = dumped("safetensors")
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], "out")
    config = at_original_size(Path("out"))
    _, info = LlavaForConditionalGeneration.from_pretrained(
        source, config=config, output_loading_info=True
    )
    assert len(info["missing_keys"]) > 70
    assert len(info["unexpected_keys"]) > 70


def test_interleave(interleave: Callable[..., Path]) -> None:  # noqa: F811
    unexpected = loads_what_apply_writes(
        "llava-interleave", interleave(), TINY / "siglip-tiny-patch14-28"
    )
    assert unexpected == {".dropped.model.image_newline"}


def test_onevision_with_wrapped_names(changed: Changed) -> None:
    """OneVision's tensors are those of the same rules."""

    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors["module." + name] = tensors.pop(name)

    source = changed(
        TINY / "llava-onevision" / "safetensors",
        wrap,
        lambda config: config.update(image_aspect_ratio="anyres"),
    )
    unexpected = loads_what_apply_writes(
        "llava-interleave", source, TINY / "siglip-tiny-patch14-28"
    )
    assert unexpected == {".dropped.model.image_newline"}


def test_saved_again_it_has_its_original_names(dumped: Callable[..., Path]) -> None:
    source = dumped("safetensors", "module.")
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], "out")
    mapping = mapped(load_rule_file("llava-v1.5")).patterns
    config = at_original_size(Path("out"))
    model = LlavaForConditionalGeneration.from_pretrained(
        source, config=config, key_mapping=mapping
    )
    model.save_pretrained("saved")
    original = {
        name for name in load_file(source / "model.safetensors") if not name.endswith("inv_freq")
    }
    assert load_file("saved/model.safetensors").keys() == original


def test_rules_for_other_checkpoints_are_left_out(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        "schema: 1\nnames: [{id: a, from: 'a.{p}', to: 'b.{p}', when: {config: {kind: x}}}]\n",
    )
    assert mapped(rules).patterns == {}
    assert mapped(rules).remarks[0] == "Rules whose `when` doesn't hold here are left out: names/a."
    assert len(key_mapping(rules, compile_rules(rules, (), {"kind": "x"})).patterns) == 1


def test_operations_are_said_to_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "turned.yaml"
    path.write_text(
        "schema: 1\nnames: [{id: a, from: 'a.{r...}', to: 'b.{r}'}]\n"
        "tensors: [{id: turn, from: 'b.{r...}', to: 'c.{r}', how: {axes: [1, 0]}}]\n"
    )
    assert any(
        "`tensors/turn` is left out" in remark for remark in mapped(load_rule_file(path)).remarks
    )
