"""What makes the output complete: config, generation config, tokenizer, processor, chat
template.
"""

from llava_remap.folder.make import (
    Parts,
    keep_files,
    kept_notes,
    make_files,
    read_generation_config,
)
from llava_remap.folder.processor import (
    find_image_processor,
    image_processor_problems,
    stock_notes,
    video_processor_notes,
)
from llava_remap.folder.programs import program_notes, serving
from llava_remap.folder.scratch import scratch_folder

__all__ = [
    "Parts",
    "find_image_processor",
    "image_processor_problems",
    "keep_files",
    "kept_notes",
    "make_files",
    "program_notes",
    "read_generation_config",
    "scratch_folder",
    "serving",
    "stock_notes",
    "video_processor_notes",
]
