"""A Hugging Face hub repository to a local folder, which `open_checkpoint` reads. Imports
`huggingface_hub` when it downloads.
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
