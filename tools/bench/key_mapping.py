"""What transformers does by itself: load with `from_pretrained(key_mapping=…)`, save with
`save_pretrained`.

`key_mapping` is what `llava-remap rules explain --as key-mapping` prints, the config what `apply`
writes: neither is timed. A plain save would write the original names back, so it is told not to;
the names are then those of the installed version's modules. No rows are added, and no processor is
saved. One dtype is for all: 5.23 takes several no longer, so a float32 tower beside a float16
language model is rounded.

    python key_mapping.py SOURCE CONFIG.json MAPPING.json OUTPUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, LlavaConfig


def main() -> None:
    source, config, mapping, output = map(Path, sys.argv[1:5])
    model = AutoModelForImageTextToText.from_pretrained(
        source,
        config=LlavaConfig.from_json_file(config),
        key_mapping=json.loads(mapping.read_text(encoding="utf-8")),
        dtype="auto",
    )
    model.save_pretrained(output, save_original_format=False)


if __name__ == "__main__":
    main()
