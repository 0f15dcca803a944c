"""Whose tokenizer, chat template and config a folder gets, and that it cuts words as
SentencePiece does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import AutoProcessor

from llava_remap.jobs.apply import apply
from tests.conftest import CLIP, RELEASED, TINY, Changed, Tensors

SENTENCES = ("What is it?", "USER: a cat, 3 dogs\nASSISTANT: é中")


def with_tokenizer_config(changed: Changed, **content: object) -> Path:
    source = changed()
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
    return source


def test_a_tokenizer_alone_will_do_for_a_language_model(changed: Changed, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    source = changed()
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).rename(text / name)
    apply(
        "llava-v1.5",
        [str(source), f"vision_tower={CLIP}", f"language_model={text}"],
        tmp_path / "out",
    )
    assert (
        AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("<image>")
        == 320
    )


def test_config_and_tokenizer_of_a_bare_state_dict(tmp_path: Path) -> None:
    """`model_state_dict.bin` with nothing beside it; the language model's own folder says the
    rest.
    """
    bare, text = tmp_path / "bare", tmp_path / "text"
    bare.mkdir()
    text.mkdir()
    shutil.copy(TINY / "llava-v1.5" / "full_state_dict" / "model_state_dict.bin", bare)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(RELEASED / "bin" / name, text / name)
    config = {
        n: v
        for n, v in json.loads((RELEASED / "bin" / "config.json").read_text()).items()
        if "mm_" not in n
    }
    (text / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    apply(
        "llava-v1.5",
        [str(bare), f"vision_tower={CLIP}", f"language_model={text}"],
        tmp_path / "out",
    )
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["vision_feature_layer"], made["vision_feature_select_strategy"]) == (-2, "default")
    assert (
        AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.convert_tokens_to_ids("<image>")
        == 320
    )


def test_the_text_models_chat_template_is_not_taken(changed: Changed, tmp_path: Path) -> None:
    source = with_tokenizer_config(changed, chat_template="SOURCE {{ messages[0].content }}")
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    ours = json.loads((tmp_path / "out" / "chat_template.json").read_text())["chat_template"]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == ours
    assert "ASSISTANT" in ours
    assert AutoProcessor.from_pretrained(tmp_path / "out").chat_template == ours
    assert "SOURCE" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_no_tokenizer_class_that_only_5_x_knows(changed: Changed, tmp_path: Path) -> None:
    apply("llava-v1.5", [str(RELEASED / "bin"), f"vision_tower={CLIP}"], tmp_path / "first")
    source = with_tokenizer_config(changed, tokenizer_class="TokenizersBackend")
    shutil.copy(tmp_path / "first" / "tokenizer.json", source / "tokenizer.json")
    apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] != "TokenizersBackend"


def test_tokens_that_are_there_keep_their_ids(changed: Changed, tmp_path: Path) -> None:
    """A tokenizer with `<image>` and a pad token of its own, in rows that the embedding has:
    nothing is added or resized.
    """

    def more_rows(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.ones(10, 64, dtype=torch.float16)])

    apply("llava-v1.5", [str(RELEASED / "bin"), f"vision_tower={CLIP}"], tmp_path / "first")
    source = changed(tensors=more_rows, config=lambda c: c.update({"vocab_size": 330}))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tmp_path / "first" / name, source / name)
    result = apply("llava-v1.5", [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    assert "LR407" in {note.code for note in result.notes}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["image_token_id"],
        config["pad_token_id"],
        config["text_config"]["vocab_size"],
    ) == (320, 321, 330)


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ("llava-v1.5", "LlavaLlamaForCausalLM"),
        ("bakllava", "LlavaMistralForCausalLM"),
        ("sharegpt4v", "Share4VLlamaForCausalLM"),
    ],
)
@pytest.mark.parametrize("said", ["whole", "no class", "nothing"])
def test_the_output_cuts_words_as_sentencepiece_does(
    rules: str, text: str, said: str, changed: Changed, tmp_path: Path
) -> None:
    """Whatever class a tokenizer's config names, and whatever transformers would take for a
    model of this type.
    """
    source = changed(config=lambda c: c.update({"architectures": [text]}))
    config = json.loads((source / "tokenizer_config.json").read_text())
    if said != "whole":
        del config["tokenizer_class"]
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    if said == "nothing":
        (source / "tokenizer_config.json").unlink()
    apply(rules, [str(source), f"vision_tower={CLIP}"], tmp_path / "out")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    for sentence in SENTENCES:
        assert tokenizer(sentence)["input_ids"] == [1, *pieces.encode(sentence)]
