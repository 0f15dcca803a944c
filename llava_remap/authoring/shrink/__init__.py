"""A small checkpoint for trying rules and programs: it has the names, dtypes and ties of a large
checkpoint, and made-up values.
"""

from llava_remap.authoring.shrink.forms import Form
from llava_remap.authoring.shrink.job import Shrunk, shrink

__all__ = ["Form", "Shrunk", "shrink"]
