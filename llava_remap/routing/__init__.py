"""Takes source names through the program, and finds the rule file that fits a checkpoint."""

from llava_remap.routing.fits import draft_command
from llava_remap.routing.route import (
    Applied,
    Routed,
    RoutedPair,
    Routes,
    SourceName,
    in_place_of,
    is_one_tensor,
    main_names,
    operations_on,
    route,
)

__all__ = [
    "Applied",
    "Routed",
    "RoutedPair",
    "Routes",
    "SourceName",
    "draft_command",
    "in_place_of",
    "is_one_tensor",
    "main_names",
    "operations_on",
    "route",
]
