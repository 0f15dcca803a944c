"""Derives the target's config, and the parameters of its class."""

from llava_remap.target_model.as_source import config_as_source, norms_about_one
from llava_remap.target_model.components import (
    Adapter,
    Component,
    LanguageModel,
    Projector,
    VisionTower,
    components,
    embedding_and_head,
)
from llava_remap.target_model.config import (
    ChosenTemplate,
    TargetConfig,
    derive_config,
    embedding_rows,
)
from llava_remap.target_model.config_keys import unread_keys
from llava_remap.target_model.config_parts import (
    TEXT_KIND,
    TOWER_KIND,
    describes_part,
    require_text_config,
    text_config,
    text_differences,
    text_model_of,
)
from llava_remap.target_model.constants import bad_constants
from llava_remap.target_model.conversions import (
    Conversion,
    Example,
    Moved,
    Step,
    conversion_types,
    read_conversion,
)
from llava_remap.target_model.known_keys import (
    keys_without_use,
    unknown_sizes,
    unknown_target,
    unread_of_towers,
)
from llava_remap.target_model.other_form import Translated, flat, translate_config, word_problems
from llava_remap.target_model.presets import (
    IMAGE_PROCESSORS,
    SCALED_PICTURES,
    STOCK,
    TOKENIZERS,
    stock_name,
)
from llava_remap.target_model.source_files import odd_values, read_beside
from llava_remap.target_model.tekken import (
    has_tekken,
    lacks_library,
    read_tekken,
    tekken_encoder,
)
from llava_remap.target_model.text_model import TextModel
from llava_remap.target_model.tower import Tower, UnknownTowerError, has_stock_sizes, shapes_config
from llava_remap.target_model.vocabulary import (
    PlacedToken,
    Vocabulary,
    place_tokens,
    read_vocabulary,
    vocabulary_problems,
)
from llava_remap.target_model.wanted import (
    CLASSIC,
    WRITTEN,
    Target,
    build_on_meta,
    check_layout,
    config_size,
    layout_program,
    nearest_layout,
    wanted_parameters,
)

__all__ = [
    "Adapter",
    "Component",
    "Conversion",
    "LanguageModel",
    "Moved",
    "Projector",
    "VisionTower",
    "components",
    "embedding_and_head",
    "CLASSIC",
    "Example",
    "IMAGE_PROCESSORS",
    "PlacedToken",
    "TEXT_KIND",
    "TOWER_KIND",
    "SCALED_PICTURES",
    "Step",
    "STOCK",
    "stock_name",
    "TOKENIZERS",
    "Target",
    "ChosenTemplate",
    "TargetConfig",
    "TextModel",
    "Tower",
    "UnknownTowerError",
    "Vocabulary",
    "WRITTEN",
    "bad_constants",
    "build_on_meta",
    "check_layout",
    "config_as_source",
    "conversion_types",
    "config_size",
    "derive_config",
    "embedding_rows",
    "has_stock_sizes",
    "odd_values",
    "keys_without_use",
    "layout_program",
    "nearest_layout",
    "norms_about_one",
    "place_tokens",
    "read_beside",
    "read_conversion",
    "read_vocabulary",
    "require_text_config",
    "shapes_config",
    "text_config",
    "text_differences",
    "text_model_of",
    "unknown_sizes",
    "unknown_target",
    "unread_keys",
    "unread_of_towers",
    "vocabulary_problems",
    "wanted_parameters",
    "Translated",
    "flat",
    "describes_part",
    "word_problems",
    "translate_config",
    "has_tekken",
    "lacks_library",
    "read_tekken",
    "tekken_encoder",
]
