"""Class and config to the wanted parameters."""

from llava_remap.target.config import EMBEDDING, HEAD, TargetConfig, derive_config, embedding_rows, text_config
from llava_remap.target.presets import IMAGE_PROCESSORS, TOKENIZERS
from llava_remap.target.tower import Tower, shapes_config
from llava_remap.target.vocabulary import PlacedToken, Vocabulary, place_tokens, read_vocabulary, vocabulary_problems
from llava_remap.target.wanted import Target, build_on_meta, wanted_parameters

__all__ = [
    "EMBEDDING",
    "HEAD",
    "IMAGE_PROCESSORS",
    "PlacedToken",
    "TOKENIZERS",
    "Target",
    "TargetConfig",
    "Tower",
    "Vocabulary",
    "build_on_meta",
    "derive_config",
    "embedding_rows",
    "place_tokens",
    "read_vocabulary",
    "shapes_config",
    "text_config",
    "vocabulary_problems",
    "wanted_parameters",
]
