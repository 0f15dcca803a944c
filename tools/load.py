"""Open a converted folder as a user would, ask it about a picture, and say what came of it:
`python tools/load.py FOLDER`.
"""

from __future__ import annotations

import os
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging


def main(folder: str) -> None:
    logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(folder)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    left_over = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if left_over:
        sys.exit(f"{folder} doesn't load cleanly: {left_over}")
    conversation = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}],
        }
    ]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (64, 48), "teal"), text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    if not torch.isfinite(logits).all():
        sys.exit(f"{folder} loads, but its logits are not finite.")
    count = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"Loaded {folder}: {type(model).__name__}, {count:,} parameters, nothing missing, "
        "unexpected or mismatched."
    )
    print(f"Prompt {prompt!r} with a picture: logits {list(logits.shape)}, all finite.")


if __name__ == "__main__":
    main(sys.argv[1])
