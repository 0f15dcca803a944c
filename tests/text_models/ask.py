"""Logits of converted folders by whatever transformers is on the path: `python -m
tests.text_models.ask OUT FOLDER…`.

Beside each folder, its own language model's logits lie in FOLDER.pt. OUT is JSON: how far the
folder's are from them, as a share of the largest, or why there are none. Run by several versions,
so it keeps to what all of them have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers

NEWER = not transformers.__version__.startswith("4.46.")


def far(folder: Path) -> float | str:
    """The largest difference of a folder's logits."""
    config = json.loads((folder / "config.json").read_text())
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if config["text_config"]["model_type"] not in known:
        return "no such language model"
    said = torch.load(folder.with_suffix(".pt"))
    kind = getattr(transformers, config["architectures"][0])
    try:
        model, info = kind.from_pretrained(
            folder, torch_dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
        )
        if left := [
            name
            for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
            for name in info[what]
        ]:
            return f"{len(left)} names left over"
        with torch.no_grad():
            # 4.46 wants a picture with ids.
            given = (
                {"input_ids": said["ids"]}
                if NEWER
                else {"inputs_embeds": model.get_input_embeddings()(said["ids"])}
            )
            logits = model.eval()(**given, use_cache=False).logits[..., : said["logits"].shape[-1]]
    except Exception as error:  # whatever a version raises is what is to be known
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return float((logits - said["logits"]).abs().max() / said["logits"].abs().max())


if __name__ == "__main__":
    out, *folders = map(Path, sys.argv[1:])
    out.write_text(json.dumps({folder.name: far(folder) for folder in folders}))
