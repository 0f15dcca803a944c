"""Ask one version of transformers for the pixels of pictures of several shapes: what converted
folders' processors make of each.

`python -m tests.original.padded OUT FOLDER…` writes OUT, a JSON file that `read` reads. All
versions run this module.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

from tests.original.facts import Pixels, picture

#: Sizes and seeds: wide, high, by even and odd margins, by one pixel; and squares, one of the
#: towers' own size.
PICTURES = (
    "500x333-2",
    "333x500-1",
    "640x480-3",
    "100x37-3",
    "37x100-4",
    "301x300-2",
    "27x28-5",
    "28x28-1",
    "45x45-6",
)
Made = dict[str, Pixels] | str


def read(path: Path) -> dict[str, Made]:
    """By folder: the pixels of each picture, or why AutoProcessor doesn't open it."""
    said = json.loads(path.read_text())
    return {
        folder: made
        if isinstance(made, str)
        else {name: Pixels.read(pixels) for name, pixels in made.items()}
        for folder, made in said.items()
    }


def ask(folder: Path) -> dict[str, Any] | str:
    """Open a folder as a user would, and take all pictures through it."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder).image_processor
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    made = {
        name: processor(picture(name), return_tensors="pt")["pixel_values"] for name in PICTURES
    }
    return {name: asdict(Pixels.of(array[0].numpy())) for name, array in made.items()}


def main(out: str, *folders: str) -> None:
    Path(out).write_text(json.dumps({Path(folder).name: ask(Path(folder)) for folder in folders}))


if __name__ == "__main__":
    main(*sys.argv[1:])
