"""Small twins: the same names, dtypes and ties, sizes that fit one another, the same values in
every form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from llava_remap.authoring.shrink import Form, Shrunk, shrink
from llava_remap.authoring.shrink.forms import weight_files
from llava_remap.checkpoint import open_checkpoint
from llava_remap.core.problem import RemapError
from tests.checkpoint.stored import raw, same, stored
from tests.conftest import MANIFESTS, RELEASED, TINY, Run

EVERY = sorted(path.stem for path in MANIFESTS.glob("*.json"))
TIED = "llava-onevision-qwen2-0.5b"
LLAMA = "llava-v1.5-7b.released"
VIP = "vip-llava-7b"

Changed = Callable[..., Path]


@pytest.fixture
def manifest(tmp_path: Path) -> Changed:
    """A manifest, copied with its tensors (name → [dtype, shape]) and config changed by
    functions.
    """

    def make(
        name: str,
        config: Callable[[dict[str, Any]], object] = lambda config: None,
        tensors: Callable[[dict[str, Any]], object] = lambda tensors: None,
    ) -> Path:
        content = read(MANIFESTS / f"{name}.json")
        config(content["config"])
        tensors(content["tensors"])
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(content))
        return path

    return make


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def twin(name: str, output: str = "out", **options: Any) -> Shrunk:
    return shrink(MANIFESTS / f"{name}.json", output, **options)


def refusal(source: Path, **options: Any) -> str:
    """Code and cause of what `shrink` refuses; nothing is left of the output then."""
    with pytest.raises(RemapError) as error:
        shrink(source, "refused", **options)
    assert not Path("refused").exists()
    return f"{error.value.problems[0].code} {error.value.problems[0].cause}"


def every_file(folder: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def shapes(folder: str = "out") -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in open_checkpoint(Path(folder)).catalog.items()}


def layer(name: str) -> tuple[bool, int]:
    """Whether a tensor is in a tower, and the number of its layer."""
    found = re.search(r"layers\.(\d+)\.", name)
    return bool(re.search(r"_tower\.|vision_model\.", name)), int(found[1]) if found else 0


@pytest.mark.parametrize("name", EVERY)
def test_names_dtypes_and_ties_are_those_of_the_large_one(name: str) -> None:
    large = open_checkpoint(MANIFESTS / f"{name}.json")
    done = twin(name, form="bin", layers=1)
    small = open_checkpoint(Path("out"))
    depth = 12 if name == VIP else 3
    kept = {
        n: t.dtype for n, t in large.catalog.items() if layer(n)[1] < (depth if layer(n)[0] else 1)
    }
    assert {n: t.dtype for n, t in small.catalog.items()} == kept
    assert {frozenset(group) for group in small.aliases} == {
        frozenset(group) for group in large.aliases
    }
    assert {n: len(t.shape) for n, t in small.catalog.items()} == {
        n: len(large.catalog[n].shape) for n in kept
    }
    assert small.nbytes < 4_000_000
    assert done.tensors_before == len(large.catalog)


@pytest.mark.parametrize("name", EVERY)
def test_config_and_tokenizer_have_the_sizes_of_the_tensors(name: str) -> None:
    twin(name)
    found, config = shapes(), read(Path("out/config.json"))
    text = config.get("text_config", config)
    table = next(
        shape
        for n, shape in found.items()
        if n.endswith(("embed_tokens.weight", "token_embedding.weight"))
    )
    assert (text["vocab_size"], text["hidden_size"]) == table
    widened = next(
        s
        for n, s in found.items()
        if n.endswith("mlp.gate_proj.weight") or re.match("text_model.*fc1.weight", n)
    )
    assert widened == (text["intermediate_size"], text["hidden_size"])
    keys = next(
        shape
        for n, shape in found.items()
        if n.endswith("self_attn.k_proj.weight") and not layer(n)[0]
    )
    head = text["hidden_size"] // text["num_attention_heads"]
    assert keys[0] == text.get("num_key_value_heads", text["num_attention_heads"]) * head
    tokenizer = Tokenizer.from_file("out/tokenizer.json")
    large = read(MANIFESTS / f"{name}.json")["config"]
    large = large.get("text_config", large)
    keys_of_ids = [
        key for key, i in large.items() if key.endswith("_token_id") and isinstance(i, int)
    ]
    # SigLIP's config names ids beyond its 32000 rows; they stay beyond the rows.
    ids = [text[key] for key in keys_of_ids if large[key] < large["vocab_size"]]
    assert max(ids) < tokenizer.get_vocab_size() <= text["vocab_size"]
    said = "What is it?\n\u00e9 \U0001f408"
    assert tokenizer.decode(tokenizer.encode(said, add_special_tokens=False).ids) == said
    assert not [shape for shape in found.values() if max(shape, default=1) > 512]


def test_unlike_sizes_of_one_number_are_told_apart() -> None:
    """4096 is the width of the language model and what CLIP's layers widen to; 1024 rows of keys
    are not the tower's width.
    """
    twin("bakllava-v1")
    found = shapes()
    assert found["model.layers.1.self_attn.q_proj.weight"] == (128, 128)
    assert found["model.layers.1.self_attn.k_proj.weight"] == (64, 128)
    tower = "model.vision_tower.vision_tower.vision_model."
    assert found[tower + "encoder.layers.2.mlp.fc1.weight"] == (160, 64)
    assert found[tower + "embeddings.patch_embedding.weight"] == (64, 3, 14, 14)
    assert found[tower + "embeddings.position_embedding.weight"] == (14 * 14 + 1, 64)
    assert found["model.mm_projector.0.weight"] == (128, 64)


def test_a_projector_over_several_layers() -> None:
    twin(VIP)
    found = shapes()
    assert found["model.mm_projector.clip_layernorm.weight"] == (5 * 64,)
    assert found["model.mm_projector.final_linear.0.weight"] == (128, 5 * 64)
    assert read(Path("out/config.json"))["mm_hidden_size"] == 5 * 64
    assert read(Path("out/vision_tower/config.json"))["vision_config"]["num_hidden_layers"] == 12


def test_a_language_model_as_wide_as_what_the_projector_takes(manifest: Changed) -> None:
    """As ViP-LLaVA-13B: nothing but a small one that is as wide, too, has shapes for
    `final_linear.0` [5120, 5120].
    """

    def widened(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if not layer(name)[0]:
                tensor["shape"] = [5120 if size == 4096 else size for size in tensor["shape"]]

    shrink(manifest(VIP, lambda config: config.update(hidden_size=5120), widened), "out")
    found = shapes()
    assert found["model.mm_projector.final_linear.0.weight"] == (320, 320)
    assert found["model.mm_projector.clip_layernorm.weight"] == (320,)
    assert found["model.layers.0.mlp.gate_proj.weight"] == (224, 320)
    assert found["model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"] == (64,)


def test_heads_longer_than_usual(manifest: Changed) -> None:
    def doubled(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if (
                "self_attn.q_proj" in name
                or "self_attn.k_proj" in name
                or "self_attn.v_proj" in name
            ):
                tensor["shape"][0] *= 2
            elif "self_attn.o_proj" in name:
                tensor["shape"][1] *= 2

    shrink(
        manifest("bakllava-v1.released", lambda config: config.update(head_dim=256), doubled), "out"
    )
    found = shapes()
    assert found["model.layers.0.self_attn.q_proj.weight"] == (256, 128)
    assert found["model.layers.0.self_attn.k_proj.weight"] == (128, 128)
    assert found["model.layers.0.self_attn.o_proj.weight"] == (128, 256)
    assert read(Path("out/config.json"))["head_dim"] == 64


def test_two_runs_give_equal_bytes_and_another_seed_other_values() -> None:
    for form in Form:
        twin(TIED, f"one-{form.value}", form=form)
        twin(TIED, f"two-{form.value}", form=form)
        assert every_file(f"one-{form.value}") == every_file(f"two-{form.value}")
    twin(TIED, "other", seed=1)
    one, other = every_file("one-safetensors"), every_file("other")
    assert {name for name in one if one[name] != other[name]} == {"model.safetensors"}
    first, second = (
        open_checkpoint(Path("one-safetensors")).catalog,
        open_checkpoint(Path("other")).catalog,
    )
    assert not any(same(tensor, stored(second[name])) for name, tensor in first.items())


@pytest.mark.parametrize("name", [TIED, "llava-v1.5-7b", "clip-vit-large-patch14-336"])
def test_every_form_holds_the_same_tensors(name: str) -> None:
    aliases = {frozenset(group) for group in open_checkpoint(MANIFESTS / f"{name}.json").aliases}
    second = {"lm_head.weight"} if aliases else set()
    twin(name, "safetensors")
    wanted = {
        n: stored(tensor) for n, tensor in open_checkpoint(Path("safetensors")).catalog.items()
    }
    assert not second & set(wanted)
    for form in Form:
        folder = Path(f"form-{form.value}")
        shrink(MANIFESTS / f"{name}.json", folder, form=form.value)
        checkpoint = open_checkpoint(folder)
        held = checkpoint.catalog
        assert all(same(held[n], tensor) for n, tensor in wanted.items())
        if form.suffix == "safetensors":
            assert set(held) == set(wanted)
        else:
            assert set(held) == set(wanted) | second
            assert {frozenset(group) for group in checkpoint.aliases} == aliases
        assert len(checkpoint.files) == (3 if form.is_sharded else 1)
    assert open_checkpoint(Path("form-legacy")).form.startswith("torch .bin from before 1.6")


def test_torch_reads_what_is_written() -> None:
    """The format before 1.6 is written by hand."""
    twin(TIED, "zip", form="bin")
    twin(TIED, "old", form="legacy")
    states = [torch.load(f"{form}/pytorch_model.bin", weights_only=True) for form in ("zip", "old")]
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert raw(tensor) == raw(states[1][name])
    for state in states:
        assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()


@pytest.mark.parametrize("form", Form)
def test_stubs_and_ties_in_any_order(form: Form) -> None:
    """Tensors without elements, as ZeRO-3 leaves them, and a second name that stands before the
    first.
    """
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    stubs = ("model.norm.weight", "model.layers.0.input_layernorm.weight")
    held = {
        head: torch.zeros(2),
        **{name: torch.empty(0, dtype=torch.float16) for name in stubs},
        table: torch.ones(2),
        "a": torch.zeros(1),
    }
    Path("out").mkdir()
    for name, data in weight_files(form, held, [(table, head)]).items():
        Path("out", name).write_bytes(data)
    checkpoint = open_checkpoint(Path("out"))
    found = {name: stored(tensor).tolist() for name, tensor in checkpoint.catalog.items()}
    second = {} if form.suffix == "safetensors" else {head: [1.0, 1.0]}
    assert found == {table: [1.0, 1.0], "a": [0.0], stubs[0]: [], stubs[1]: [], **second}
    assert {frozenset(group) for group in checkpoint.aliases} == (
        {frozenset((table, head))} if second else set()
    )


def test_values() -> None:
    twin(LLAMA)
    found = {
        name: stored(tensor).double()
        for name, tensor in open_checkpoint(Path("out")).catalog.items()
    }
    table = found["model.embed_tokens.weight"]
    assert abs(table.mean()) < 0.002
    assert abs(table.std() - 0.05) < 0.002
    norm = found["model.layers.1.input_layernorm.weight"]
    assert abs(norm.mean() - 1) < 0.03
    assert 0.03 < norm.std() < 0.07
    assert abs(found["model.mm_projector.0.bias"].mean()) < 0.03
    frequencies = 1.0 / 10000 ** (np.arange(0, 32, 2) / 32)
    assert (
        found["model.layers.0.self_attn.rotary_emb.inv_freq"].tolist()
        == frequencies.astype(np.float32).tolist()
    )
    assert (
        len({raw(tensor) for name, tensor in found.items() if "inv_freq" not in name})
        == len(found) - 2
    )


def test_positions_count() -> None:
    twin("clip-vit-large-patch14-336")
    catalog = open_checkpoint(Path("out")).catalog
    assert stored(catalog["vision_model.embeddings.position_ids"]).tolist() == [
        list(range(14 * 14 + 1))
    ]
    assert stored(catalog["text_model.embeddings.position_ids"]).tolist() == [list(range(77))]


def test_values_depend_on_name_and_seed_alone() -> None:
    """Those of the layers that stay are the same, however many others stay."""
    twin(VIP, "few")
    twin(VIP, "many", layers=4, tower_layers=13, form="sharded")
    few, many = open_checkpoint(Path("few")).catalog, open_checkpoint(Path("many")).catalog
    assert len(few) < len(many)
    assert all(same(tensor, stored(many[name])) for name, tensor in few.items())


def test_nothing_of_the_weights_stays() -> None:
    source = RELEASED / "sharded"
    shrink(source, "out")
    large, small = open_checkpoint(source).catalog, open_checkpoint(Path("out")).catalog
    assert {name: t.shape for name, t in large.items()} == {
        name: t.shape for name, t in small.items()
    }
    assert not [name for name, tensor in large.items() if same(small[name], stored(tensor))]
    # The twin's values are rounded once, the large checkpoint's in every step, in float32.
    frequencies = "model.layers.1.self_attn.rotary_emb.inv_freq"
    assert torch.allclose(stored(small[frequencies]), stored(large[frequencies]), rtol=1e-6)
    assert not [file for file in every_file("out") if file.endswith(".model")]


def test_a_twin_of_a_twin_is_the_same() -> None:
    twin("llava-v1.6-mistral-7b.released", "one")
    shrink("one", "two")
    assert every_file("one") == every_file("two")


@pytest.mark.parametrize(
    ("name", "words", "roles"),
    [
        (
            LLAMA,
            {0: "<unk>", 1: "<s>", 2: "</s>"},
            {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"},
        ),
        (
            TIED,
            {300: "<|endoftext|>", 301: "<|im_start|>", 302: "<|im_end|>"},
            {"pad_token": "<|endoftext|>"},
        ),
        (
            "llava-next-llama3-8b.released",
            {314: "<|begin_of_text|>", 318: "<|eot_id|>"},
            {"bos_token": "<|begin_of_text|>"},
        ),
        (
            "llava-lightning-7b-v1-1.released",
            {1: "<s>", 317: "<im_patch>", 318: "<im_start>", 319: "<im_end>"},
            {},
        ),
    ],
)
def test_special_tokens(name: str, words: dict[int, str], roles: dict[str, str]) -> None:
    twin(name)
    vocabulary = Tokenizer.from_file("out/tokenizer.json").get_vocab()
    assert {i: word for word, i in vocabulary.items() if i in words} == words
    config = read(Path("out/tokenizer_config.json"))
    assert {role: config[role] for role in roles} == roles
    assert {
        int(i): token["content"] for i, token in config["added_tokens_decoder"].items()
    }.items() >= words.items()


def test_ids_of_a_config_follow_their_tokens(manifest: Changed) -> None:
    """Also those of an end that is Yi's, of several ends, and of tokens that no kind of text
    model has.
    """
    ids = {
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "pad_token_id": 31999,
        "image_token_index": 31998,
        "image_token_id": 31998,
    }
    shrink(manifest(LLAMA, lambda config: config.update(ids)), "out")
    config, tokenizer = read(Path("out/config.json")), Tokenizer.from_file("out/tokenizer.json")
    said = {key: config[key] for key in ids}
    assert said == {
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "pad_token_id": 319,
        "image_token_index": 318,
        "image_token_id": 318,
    }
    assert [tokenizer.id_to_token(i) for i in (2, 7, 318, 319)] == [
        "<|endoftext|>",
        "<|im_end|>",
        "<image>",
        "<pad>",
    ]


def test_rows_that_the_config_knows_nothing_of_are_there_too(manifest: Changed) -> None:
    shrink(manifest(LLAMA, lambda config: config.update(vocab_size=31997)), "out")
    assert read(Path("out/config.json"))["vocab_size"] == 317
    assert shapes()["model.embed_tokens.weight"] == (320, 128)
    assert refusal(manifest(LLAMA, lambda config: config.update(vocab_size=64000))).startswith(
        "LR112 "
    )


@pytest.mark.parametrize(
    ("pinpoints", "small"),
    [
        ([[336, 672], [672, 336], [1008, 336]], [[196, 392], [392, 196], [588, 196]]),
        ("[(384, 768), (768, 384)]", "[(196, 392), (392, 196)]"),
        ("(1x1),...,(6x6)", "(1x1),...,(6x6)"),
        ([], []),
    ],
)
def test_grid_pinpoints_are_of_small_images(pinpoints: Any, small: Any, manifest: Changed) -> None:
    shrink(manifest(LLAMA, lambda config: config.update(image_grid_pinpoints=pinpoints)), "out")
    assert read(Path("out/config.json"))["image_grid_pinpoints"] == small


def test_a_tower_whose_last_layer_was_deleted() -> None:
    """Its own config says one layer more than the checkpoint has, as with the large one: 26 of
    27.
    """
    twin(TIED, tower_layers=2)
    tower = read(Path("out/vision_tower/config.json"))["vision_config"]
    assert (tower["model_type"], tower["num_hidden_layers"]) == ("siglip_vision_model", 3)
    assert max(layer(name)[1] for name in shapes() if layer(name)[0]) == 1


def test_a_tower_that_is_not_in_the_checkpoint() -> None:
    """Its tensors are those of a CLIP checkpoint, where such a tower is taken from."""
    done = twin(LLAMA)
    clip = open_checkpoint(MANIFESTS / "clip-vit-large-patch14-336.json").catalog
    tower = shapes("out/vision_tower")
    wanted = {
        n
        for n in clip
        if n.startswith("vision_model.") and layer(n)[1] < 3 and "position_ids" not in n
    }
    assert set(tower) == wanted
    assert tower == {
        name: done.twin.towers["vision_tower"].small_shape(name, clip[name].shape)
        for name in wanted
    }
    assert done.tower == Path("out/vision_tower")
    assert read(Path("out/vision_tower/preprocessor_config.json"))["crop_size"] == {
        "height": 196,
        "width": 196,
    }


def test_which_tower_is_not_in_the_checkpoint(manifest: Changed) -> None:
    def taking(width: int) -> Callable[[dict[str, Any]], object]:
        return lambda tensors: tensors["model.mm_projector.0.weight"].update(shape=[4096, width])

    def named(name: str | None, width: int) -> Callable[[dict[str, Any]], object]:
        return lambda config: config.update(mm_vision_tower=name, mm_hidden_size=width)

    shrink(
        manifest(
            LLAMA,
            named("/data/models--google--siglip-so400m-patch14-384/snapshots/1", 1152),
            taking(1152),
        ),
        "siglip",
    )
    assert "vision_model.embeddings.patch_embedding.bias" in shapes("siglip/vision_tower")
    shrink(manifest(LLAMA, named("my_tower", 2048), taking(2048)), "unnamed")
    assert shapes("unnamed/vision_tower")["vision_model.embeddings.class_embedding"] == (64,)
    assert shapes("unnamed")["model.mm_projector.0.weight"] == (128, 128)
    cause = refusal(manifest(LLAMA, named("my_tower", 1000), taking(1000)))
    assert cause.startswith("LR112 the checkpoint has no vision tower")


@pytest.mark.parametrize(("taken", "needed"), [(-2, 3), (-5, 5), ([-2, -7, 4], 7), (6, 6)])
def test_layers_enough_for_the_features(taken: Any, needed: int, manifest: Changed) -> None:
    source = manifest(LLAMA, lambda config: config.update(mm_vision_select_layer=taken))
    done = shrink(source, "out")
    assert done.twin.towers["vision_tower"].after["num_hidden_layers"] == needed
    assert refusal(source, tower_layers=1).startswith("LR211 ")


def test_a_checkpoint_that_describes_its_tower_itself() -> None:
    shrink(MANIFESTS / "siglip-so400m-patch14-384.json", "out")
    config = read(Path("out/config.json"))
    assert config["vision_config"]["hidden_size"] == 64
    assert not Path("out/vision_tower").exists()
    assert Path("out/preprocessor_config.json").is_file()


def without_config(tmp_path: Path) -> Path:
    folder = tmp_path / "bare"
    folder.mkdir()
    torch.save({"model.embed_tokens.weight": torch.ones(320, 64)}, folder / "pytorch_model.bin")
    return folder


def test_refusals(tmp_path: Path, manifest: Changed) -> None:
    assert "has no config.json" in refusal(without_config(tmp_path))
    assert "num_attention_heads: None" in refusal(
        manifest(LLAMA, lambda config: config.pop("num_attention_heads"))
    )
    assert "num_attention_heads: 7; q_proj has 4096 rows" in refusal(
        manifest(LLAMA, lambda c: c.update(num_attention_heads=7))
    )
    assert "hidden_size: 5120; the tensors show 4096" in refusal(
        manifest(LLAMA, lambda config: config.update(hidden_size=5120))
    )
    assert "`embed_tokens.weight`" in refusal(
        manifest(LLAMA, tensors=lambda t: t.pop("model.embed_tokens.weight"))
    )
    fc1 = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"
    assert "lacks its patch embedding" in refusal(
        manifest(VIP, tensors=lambda tensors: tensors.pop(fc1))
    )
    eight = manifest(
        LLAMA, tensors=lambda tensors: tensors["lm_head.weight"].update(dtype="F8_E4M3")
    )
    assert refusal(eight).startswith("LR409 ")
    assert refusal(TINY / "llava-v1.5-lora").startswith("LR107 ")
    assert refusal(MANIFESTS / f"{LLAMA}.json", form="gguf").startswith("LR211 ")
    assert refusal(MANIFESTS / f"{LLAMA}.json", layers=0).startswith("LR211 ")


def test_odd_configs_and_tensors(manifest: Changed) -> None:
    """What no model has is kept where it does no harm, else refused; it never fails in another
    way.
    """

    def odd(config: dict[str, Any]) -> None:
        config.update(
            eos_token_id=[{"a": 1}, 2],
            pad_token_id={},
            bos_token_id=True,
            rope_theta="x",
            image_grid_pinpoints="none",
        )

    shrink(manifest(LLAMA, odd), "out")
    config = read(Path("out/config.json"))
    assert [config[key] for key in ("eos_token_id", "pad_token_id", "image_grid_pinpoints")] == [
        [{"a": 1}, 2],
        {},
        "none",
    ]
    frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq"
    shrink(
        manifest(
            LLAMA, tensors=lambda tensors: tensors[frequencies].update(dtype="BOOL", shape=[])
        ),
        "bool",
    )
    assert not stored(open_checkpoint(Path("bool")).catalog[frequencies]).item()
    inside = lambda config: config.update(text_config={"rope_theta": 1e6})  # noqa: E731
    shrink(manifest(LLAMA, inside), "inside")
    found = stored(open_checkpoint(Path("inside")).catalog[frequencies])
    assert found[1].item() == pytest.approx(1e6 ** (-1 / len(found)), rel=1e-3)
    table = "model.embed_tokens.weight"
    for shape in ([0], [0, 4096], [2, 32000, 4096]):
        assert "`embed_tokens.weight`" in refusal(
            manifest(LLAMA, tensors=lambda t, s=shape: t[table].update(shape=s))
        )


def test_nothing_is_left_where_writing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []

    def full(descriptor: int) -> None:
        syncs.append(descriptor)
        if len(syncs) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    Path("there").mkdir()
    for output in ("there", "new"):
        syncs.clear()
        with pytest.raises(RemapError, match="LR502"):
            twin(LLAMA, output)
    assert [path.name for path in Path().iterdir()] == ["there"]
    assert not list(Path("there").iterdir())


def test_command(run: Run) -> None:
    ran = run(
        "shrink",
        MANIFESTS / f"{LLAMA}.json",
        "--output",
        "out",
        "--form",
        "sharded",
        "--layers",
        1,
        "--seed",
        3,
    )
    assert ran.code == 0
    assert "language_model  num_hidden_layers 32 → 1, hidden_size 4096 → 128" in ran.out
    assert "Done: ./out written" in ran.out
    assert "--source vision_tower=./out/vision_tower" in ran.out
    assert sorted(Path("out").glob("*.bin")) == [
        Path(f"out/pytorch_model-0000{n}-of-00003.bin") for n in (1, 2, 3)
    ]
    again = run("shrink", MANIFESTS / f"{LLAMA}.json", "--output", "out")
    assert (again.code, "LR503" in again.err) == (4, True)


def test_every_form_is_an_option(run: Run) -> None:
    from llava_remap.cli.commands import Form as Option

    assert list(get_args(Option)) == [form.value for form in Form]
