"""Computes the new rows of `expand_embeddings`. Imported only when rows are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from threading import RLock

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from llava_remap.post_load import DTYPE_BITS, Change, OldBytes, Reader, from_float64
from llava_remap.post_load.plugins.exact_sums import CHUNK_ROWS, ExactSums
from llava_remap.post_load.plugins.normals import normals


class NewRows:
    """The new rows of one job.

    Args:
        init, std, scale, seed: options of `expand_embeddings`.
        group_rows: the most rows to make at a time.
        read: reads old rows.

    Two matrices may be made in two threads. The lock lets only one thread sum over the old rows:
    the first thread draws the rows of both matrices, and the number of threads of a product is a
    setting of the whole process.
    """

    def __init__(
        self, init: str, std: float, scale: float, seed: int, group_rows: int, read: Reader
    ) -> None:
        self._init, self._std, self._scale, self._seed = init, std, scale, seed
        self._group_rows, self._read, self._lock = group_rows, read, RLock()
        self._both: NDArray[np.float64] | None = None

    def pieces(self, change: Change) -> Iterator[OldBytes | bytes]:
        """The pieces of one matrix: its old rows, then its new ones."""
        assert change.shape_before is not None
        rows, columns = change.shape_before
        new = change.shape_after[0] - rows
        row_nbytes = columns * DTYPE_BITS[change.dtype] // 8
        yield OldBytes(0, rows * row_nbytes)
        if self._init == "copy":
            yield from [OldBytes(change.facts["row"] * row_nbytes, row_nbytes)] * new
        elif self._init == "zeros":
            yield from (bytes(count * row_nbytes) for count in self._groups(new))
        else:
            yield from (from_float64(made, change.dtype) for made in self._made(change, new))

    def _made(self, change: Change, new: int) -> Iterator[NDArray[np.float64]]:
        """The computed rows, some at a time, [some, columns]."""
        columns = change.shape_after[1]
        # The two matrices get different rows, as in LLaVA's scripts. The end of a name is the same
        # in every layout.
        stream = int(change.target.endswith("lm_head.weight"))
        if self._init == "normal":
            bits = self._bits(stream)
            yield from (
                self._std * normals(bits, some * columns).reshape(some, columns)
                for some in self._groups(new)
            )
        elif self._init == "mean":
            mean = self._sums(change).mean(change.dtype)
            yield from (np.tile(mean, (some, 1)) for some in self._groups(new))
        elif change.facts.get("together"):
            with self._lock:
                if self._both is None:
                    self._both = self._drawn(change, new, (self._bits(0), self._bits(1)))
            yield self._both[stream * new :][:new]
        else:
            bits = self._bits(stream)
            for some in self._groups(new):
                yield self._drawn(change, some, [bits])

    def _bits(self, stream: int) -> np.random.Philox:
        """The random bits for a matrix: stream 0 for embed_tokens, 1 for lm_head."""
        return np.random.Philox(key=self._seed + (stream << 64))

    def _drawn(
        self, change: Change, new: int, streams: Sequence[np.random.Philox]
    ) -> NDArray[np.float64]:
        """`new` rows from each stream of bits, [streams·new, columns]."""
        assert change.shape_before is not None
        sums = self._sums(change, new, streams)
        return sums.mean(change.dtype) + sums.spread(sqrt(self._scale / change.shape_before[0]))

    def _sums(
        self, change: Change, new: int = 0, streams: Sequence[np.random.Philox] = ()
    ) -> ExactSums:
        """Sums over all rows that a change reads. Each row has `new` normals from each stream of
        bits.
        """
        assert change.shape_before is not None
        (source,), (rows, columns) = change.reads, change.shape_before
        sums = ExactSums(columns, len(streams) * new)
        # More threads would only wait busily between the small products.
        with self._lock, threadpool_limits(1, "blas"):
            for start in range(0, rows, CHUNK_ROWS):
                x = self._read(source, start, min(start + CHUNK_ROWS, rows), as_stored=True)
                z = [normals(bits, len(x) * new).reshape(len(x), new) for bits in streams]
                sums.add(x, np.concatenate([*z, np.empty((len(x), 0))], axis=1))
        return sums

    def _groups(self, new: int) -> list[int]:
        """The number of new rows in each group. Groups bound the memory."""
        size = self._group_rows
        return [min(size, new - start) for start in range(0, new, size)]
