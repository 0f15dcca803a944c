"""Downloads a Hugging Face hub repository to a local folder for `open_checkpoint`. Imports
`huggingface_hub` only then.
"""

from llava_remap.source.hub.download import Snapshot, download, downloading_once
from llava_remap.source.hub.refusal import HubError
from llava_remap.source.hub.repository import Repository, parse_repository, repository_of_cache

__all__ = [
    "HubError",
    "Repository",
    "Snapshot",
    "download",
    "downloading_once",
    "parse_repository",
    "repository_of_cache",
]
