"""A small checkpoint with the names, dtypes and ties of a large one and made-up values, to try
rules and programs on.
"""

from llava_remap.authoring.shrink.forms import Form
from llava_remap.authoring.shrink.job import Shrunk, shrink

__all__ = ["Form", "Shrunk", "shrink"]
