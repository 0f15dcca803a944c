"""Make questions about converted folders with their own processors and chat templates, and answer
them with transformers in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

QUESTION = "Name 3 things in it, and say which of them is nearest: the cat, the dog or the house."
FRAMES = 8


def ask(folder: Path, tokens: int, shown: Path, kinds: list[str] | None = None) -> dict[str, Any]:
    """All questions about one folder and their answers, by kind.

    Args:
        folder: the converted folder.
        tokens: how many tokens are generated.
        shown: a new folder for pictures and videos.
        kinds: the kinds of questions; None for all.
    """
    config = json.loads((folder / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    questions = make_questions(config, processor, shown)
    return {
        kind: {"question": question, "answer": answer(model, processor, question, tokens)}
        for kind, question in questions.items()
        if kinds is None or kind in kinds
    }


def make_questions(config: dict[str, Any], processor: Any, shown: Path) -> dict[str, Any]:
    """The square picture is larger than the tower's input, and the other one much wider than high:
    both are resized, and the second one is padded or cut into tiles.
    """
    shown.mkdir()
    side = config["vision_config"]["image_size"]
    random = np.random.default_rng(3)
    pixels = {
        "picture": random.integers(0, 256, (side + 12, side + 12, 3), dtype=np.uint8),
        "padded": random.integers(0, 256, (side - 3, 2 * side - 8, 3), dtype=np.uint8),
    }
    questions = {"text": make_question(processor)}
    for kind, array in pixels.items():
        Image.fromarray(array).save(shown / f"{kind}.png")
        questions[kind] = make_question(processor, image=str(shown / f"{kind}.png"))
    if "video_token_id" in config:
        frames = random.integers(0, 256, (FRAMES, side, side + 20, 3), dtype=np.uint8)
        np.save(shown / "video.npy", frames)
        questions["video"] = make_question(processor, video=str(shown / "video.npy"))
    return questions


def make_question(
    processor: Any, image: str | None = None, video: str | None = None
) -> dict[str, Any]:
    parts = [{"type": kind} for kind, file in (("image", image), ("video", video)) if file]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt, "messages": messages, "image": image, "video": video}


@torch.no_grad()
def answer(model: Any, processor: Any, question: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Greedy tokens, each by a forward pass of its own: no cache and no generation config is
    involved.
    """
    shown: dict[str, Any] = {}
    if question["image"]:
        shown["images"] = Image.open(question["image"]).convert("RGB")
    if question["video"]:
        shown["videos"] = [np.load(question["video"])]
    inputs = dict(processor(text=question["prompt"], return_tensors="pt", **shown))
    ids = inputs.pop("input_ids")
    length, logprobs, lead = ids.shape[1], [], []
    for _ in range(tokens):
        inputs["attention_mask"] = torch.ones_like(ids)
        logits = model(input_ids=ids, **inputs).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        logprobs.append(float(logits.log_softmax(-1).max()))
        lead.append(best - second)
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    made = ids[0].tolist()
    return {"ids": made[:length], "tokens": made[length:], "logprobs": logprobs, "lead": lead}


def main(given: Path, answered: Path) -> None:
    torch.set_num_threads(1)
    asked = json.loads(given.read_text())
    answers = {
        name: ask(Path(of["folder"]), of["tokens"], Path(of["shown"]), of.get("kinds"))
        for name, of in asked.items()
    }
    answered.write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
