"""Every way to copy makes the same bytes: only then do their times mean anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tools.bench.copying import WAYS


@pytest.mark.parametrize("nbytes", [0, 1, 4096, (8 << 20) - 1, 8 << 20, (16 << 20) + 4097])
@pytest.mark.parametrize("way", WAYS)
def test_copies(way: str, nbytes: int, tmp_path: Path) -> None:
    content = os.urandom(nbytes)
    (tmp_path / "source").write_bytes(content)
    try:
        WAYS[way](tmp_path / "source", tmp_path / "target")
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        pytest.skip(f"not on this file system: {error}")
    assert (tmp_path / "target").read_bytes() == content
