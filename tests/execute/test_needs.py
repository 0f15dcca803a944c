"""What is computed takes no more memory than its shapes tell: at real widths, each in a process
of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Prints what was predicted and what was taken of memory beyond what was there before.
EXPAND = """
import sys
import numpy as np
from llava_remap.execute.needs import _computed
from llava_remap.planning import Mapped, Part, PostLoad
from llava_remap.post_load import Change
from llava_remap.post_load.plugins import exact_sums, normals
from llava_remap.post_load.run import make_pieces
from llava_remap.jobs.resources import peak_nbytes

columns, new = map(int, sys.argv[1:])
change = Change("lm_head.weight", "F16", (2048, columns), (2048 + new, columns), ("e",))
then = (PostLoad("expand_embeddings", change.shape_before),)
part = Part.whole("a", "e", "lm_head.weight", change.shape_before)
entry = Mapped("lm_head.weight", "F16", change.shape_after, (part,), then, ())
np.ones((64, 64)) @ np.ones((64, 64))
rng, before = np.random.default_rng(0), peak_nbytes()

def read(target, start, stop, *, as_stored=False):
    return rng.standard_normal((stop - start, columns))  # as float64 is stored: nothing takes more

for piece in make_pieces("expand_embeddings", {}, [change], read)["lm_head.weight"]:
    pass
print(_computed(entry), peak_nbytes() - before)
"""

MERGE = """
import sys
import numpy as np
from llava_remap.checkpoint import Tensor
from llava_remap.core.dtypes import to_float64
from llava_remap.execute import merge
from llava_remap.execute.needs import _computed
from llava_remap.planning import AddLora, Mapped, Part
from llava_remap.routing import SourceName
from llava_remap.jobs.resources import peak_nbytes

width, rank = map(int, sys.argv[1:])

def rows(tensor, start, stop):
    zeros = bytes((stop - start) * tensor.shape[1] * 4)
    return to_float64(zeros, "F32").reshape(stop - start, tensor.shape[1])

zeros = bytes(1 << 20)

merge.rows = rows
np.ones((64, 64)) @ np.ones((64, 64))
before = peak_nbytes()
sizes = (width, width), (rank, width), (width, rank)
w, a, b = (Tensor.of("x", "F32", size, None) for size in sizes)
raw = merge.blocks_of_rows((zeros for _ in range(width * width >> 18)), "F32", width)
for block in merge.Pair("x", a, b, 0.5, "F32").added_to_all(raw, 0, 0, w.nbytes):
    pass
part = Part.whole("m", "x", "x", (width, width))
then = (AddLora(*(SourceName("m", name) for name in "xab"), rank, 0.5),)
entry = Mapped("x", "F32", (width, width), (part,), then, ())
print(_computed(entry), peak_nbytes() - before)
"""

TURN = """
import sys
from pathlib import Path
from llava_remap.checkpoint import Checkpoint, Location, Tensor
from llava_remap.execute import Recipe, blocks
from llava_remap.execute.needs import _computed
from llava_remap.planning import Box, Cast, Mapped, Part
from llava_remap.jobs.resources import peak_nbytes
import numpy
import llava_remap.execute.gather

rows, columns = map(int, sys.argv[1:])
shape, file = (rows, columns), Path("w")
with file.open("wb") as opened:
    opened.truncate(rows * columns * 4)
where = Location(file, 0, None, False, (0, rows * columns * 4))
source = Checkpoint(file, "", {"w": Tensor.of("w", "F32", shape, where)}, {}, file)
taken = Box("w", shape, (1, 0), (0, 0), shape[::-1])
part = Part("m", shape, taken, Box.whole("t", shape[::-1]))
entry = Mapped("t", "F16", shape[::-1], (part,), (Cast("F32"),), ())
before = peak_nbytes()
for block in blocks(Recipe({"t": entry}, {}, {"m": source}).pieces("t")):
    pass
print(_computed(entry), peak_nbytes() - before)
"""


@pytest.mark.parametrize(
    ("program", "sizes"),
    [
        (EXPAND, (4096, 64)),
        (EXPAND, (8192, 64)),
        (EXPAND, (4096, 600)),
        (MERGE, (4096, 128)),
        (MERGE, (4096, 512)),
        (TURN, (8192, 4096)),
        (TURN, (32000, 4096)),
    ],
)
def test_enough_at_real_widths(program: str, sizes: tuple[int, int]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, sizes)],
        capture_output=True,
        text=True,
        check=True,
    )
    predicted, taken = map(int, ran.stdout.split())
    assert 0.5 * predicted < taken <= predicted
