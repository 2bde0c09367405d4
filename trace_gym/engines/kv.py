"""Keys and values of token sequences of different lengths, one row each, for attention and for reuse.

The column of a token in its row is its position in the sequence. `Rows` stores rows, `KeptRows` those that are kept for
reuse; `RaggedCache` shows a block of rows to a `transformers` model, writes what the model computes at each row's own
positions, and makes the mask that hides the rest. Invariant: in row r, the columns below `filled[r]` hold the keys and
values of `tokens[r]`; all others are finite (a hidden column is multiplied by zero, and zero times NaN is NaN).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers.cache_utils import Cache

from trace_gym.engine import IntArray

__all__ = ["KeptRows", "LongArray", "RaggedCache", "Rows", "Shape"]

LongArray = npt.NDArray[np.int64]

UNKNOWN = -1  # in `tokens`: no token here
BUCKET = 64  # columns are added this many at a time, or by a quarter, whichever is more


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model's keys and values look like."""

    layers: int
    heads: int  # key-value heads
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values."""
        return self.layers * self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


class Rows:
    """Storage that grows, and where `limit`, in tokens, is near also shrinks to what is used.

    `keys`, `values`: [layers, rows, heads, columns, dim]; `tokens`: [rows, columns]; `filled`: [rows].
    """

    def __init__(self, shape: Shape, max_rows: int, max_columns: int, limit: int | None = None) -> None:
        self.shape, self.max_rows, self.max_columns, self.limit = shape, max_rows, max_columns, limit
        self.free()

    def free(self) -> None:
        """Forget every row and give the memory back."""
        self.tokens: IntArray = np.zeros((0, 0), dtype=np.int32)
        self.filled: LongArray = np.zeros(0, dtype=np.int64)
        self.keys, self.values = self._zeros(0, 0)

    def forget(self) -> None:
        """Forget every row; keep the memory."""
        self.tokens.fill(UNKNOWN)
        self.filled.fill(0)

    def _zeros(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        s = self.shape
        keys, values = (
            torch.zeros(s.layers, rows, s.heads, columns, dim, dtype=s.dtype, device=s.device)
            for dim in (s.key_dim, s.value_dim)
        )
        return keys, values

    def columns(self, count: int) -> int:
        """The least width of a store whose rows hold `count` tokens."""
        return min(-(-count // BUCKET) * BUCKET, self.max_columns)

    def room(self, rows: int, columns: int) -> tuple[int, int]:
        """The size, in rows and columns, that `reserve` will give the store.

        It is beyond `limit` only where the rows asked for and those in use cannot do with less.
        """
        assert rows <= self.max_rows and columns <= self.max_columns
        has_rows, has_columns = self.tokens.shape
        if rows <= has_rows and columns <= has_columns:
            return has_rows, has_columns
        ample_rows, ample_columns = has_rows, has_columns
        if rows > has_rows:
            ample_rows = min(max(rows, 2 * has_rows), self.max_rows)
        if columns > has_columns:
            ample_columns = min(max(self.columns(columns), has_columns + has_columns // 4), self.max_columns)
        if self.limit is None or ample_rows * ample_columns <= self.limit:
            return ample_rows, ample_columns
        used_rows = int(np.flatnonzero(self.filled).max(initial=-1)) + 1
        used_columns = int(self.filled.max(initial=0))
        return max(rows, used_rows), self.columns(max(columns, used_columns))

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for at least this many rows and columns; contents stay."""
        size = self.room(rows, columns)
        if size != self.tokens.shape:
            self._resize(*size)

    def _resize(self, rows: int, columns: int) -> None:
        tokens = np.full((rows, columns), UNKNOWN, dtype=np.int32)
        filled = np.zeros(rows, dtype=np.int64)
        keys, values = self._zeros(rows, columns)
        r, c = (min(new, old) for new, old in zip((rows, columns), self.tokens.shape, strict=True))
        tokens[:r, :c] = self.tokens[:r, :c]
        filled[:r] = self.filled[:r]
        keys[:, :r, :, :c] = self.keys[:, :r, :, :c]
        values[:, :r, :, :c] = self.values[:, :r, :, :c]
        self.tokens, self.filled, self.keys, self.values = tokens, filled, keys, values

    def take(self, row: int, source: Rows, source_row: int, count: int) -> None:
        """Make `row` the first `count` tokens of a row of `source`."""
        self.keys[:, row, :, :count] = source.keys[:, source_row, :, :count]
        self.values[:, row, :, :count] = source.values[:, source_row, :, :count]
        self.drop(row)
        self.tokens[row, :count] = source.tokens[source_row, :count]
        self.filled[row] = count

    def drop(self, row: int) -> None:
        """Forget one row."""
        self.tokens[row] = UNKNOWN
        self.filled[row] = 0

    def wipe(self, row: int) -> None:
        """Forget one row and whatever a broken forward pass left in it."""
        self.drop(row)
        self.keys[:, row] = 0
        self.values[:, row] = 0

    def longest(self, prefix: IntArray, start: int, stop: int) -> tuple[int, int]:
        """Which of the rows `start` to `stop` begins with most of `prefix`, and with how many tokens of it."""
        width = min(len(prefix), self.tokens.shape[1])
        differs = self.tokens[start:stop, :width] != prefix[:width]
        if differs.size == 0:
            return start, 0
        common = np.where(differs.any(axis=1), differs.argmax(axis=1), width)
        best = int(common.argmax())
        return start + best, int(common[best])


class KeptRows(Rows):
    """Rows that nobody samples into, of which the one longest out of use gives way. Any may vanish at any time."""

    def __init__(self, shape: Shape, max_rows: int, max_columns: int, limit: int | None = None) -> None:
        self.used: LongArray = np.zeros(max_rows, dtype=np.int64)  # [max_rows] time of the last use; 0: empty
        self._time = 0
        super().__init__(shape, max_rows, max_columns, limit)

    def free(self) -> None:
        super().free()
        self.used.fill(0)

    def forget(self) -> None:
        super().forget()
        self.used.fill(0)

    def drop(self, row: int) -> None:
        super().drop(row)
        self.used[row] = 0

    def bound(self, limit: int) -> None:
        """Hold at most `limit` tokens from now on, padding included: rows longest out of use give way."""
        self.limit = limit
        rows, columns = self.tokens.shape
        if rows * columns > limit:
            self._retain(limit // columns)

    def _retain(self, rows: int) -> None:
        """Shrink the store to its `rows` rows used last."""
        if rows == 0:
            self.free()
            return
        kept = np.argsort(-self.used[: len(self.filled)], kind="stable")[:rows]
        index = torch.from_numpy(kept).to(self.shape.device)
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.tokens, self.filled = self.tokens[kept], self.filled[kept]
        self.used[:rows] = self.used[kept]
        self.used[rows:] = 0

    def _capacity(self, count: int) -> int:
        """How many rows of which one is to hold `count` tokens the limit allows; the store is shrunk to that many."""
        if self.limit is None:
            return self.max_rows
        columns = max(self.tokens.shape[1], self.columns(count))
        rows = int(min(self.max_rows, self.limit // columns))
        if rows < len(self.filled):
            self._retain(rows)
        return rows

    def touch(self, row: int) -> None:
        """Say that a row is of use."""
        self._time += 1
        self.used[row] = self._time

    def keep(self, source: Rows, source_row: int) -> None:
        """Copy a row, unless one contains it: over one that it contains, else over the one longest out of use."""
        count = int(source.filled[source_row])
        capacity = self._capacity(count) if count else 0
        if capacity == 0:
            return
        row, common = self.longest(source.tokens[source_row, :count], 0, capacity)
        if common < count:
            if common == 0 or common < self.filled[row]:
                row = int(self.used[:capacity].argmin())
            try:
                self.reserve(row + 1, count)
            except RuntimeError:  # no memory to spare
                self.free()
                return
            self.take(row, source, source_row, count)
        self.touch(row)


class RaggedCache(Cache):
    """What a `transformers` model writes to and attends to: the block of rows that `place` named last."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(layers=[])  # `update` keeps everything in `rows`
        self._rows = rows
        self._block = slice(0, 0)
        self._width = 0
        self._targets = torch.zeros(
            0, dtype=torch.long
        )  # [N] where new vectors go, in [rows * heads * columns]
        self._sources: torch.Tensor | None = (
            None  # [N] where they come from, in [m * heads * Q]; None: all, in order
        )

    def place(self, first: int, positions: LongArray, pads: LongArray | None = None) -> torch.Tensor:
        """Say where the next forward pass, over rows `first` to `first + m`, writes; return what it may see.

        `positions` [m, Q]: each new token's position; of row i the first `pads[i]` are padding, which writes nothing.
        The additive mask [m, 1, Q, width] shows a token the columns of its own row up to its position.
        """
        shape, (m, q), columns = self._rows.shape, positions.shape, self._rows.tokens.shape[1]
        heads = np.arange(first * shape.heads, (first + m) * shape.heads).reshape(m, shape.heads, 1)
        targets = (heads * columns + positions[:, None]).ravel()
        self._sources = None
        if pads is not None:
            real = np.flatnonzero((np.arange(q) >= pads[:, None, None]).repeat(shape.heads, axis=1))
            targets = targets[real]
            self._sources = torch.from_numpy(real).to(shape.device)
        self._targets = torch.from_numpy(targets).to(shape.device)
        self._block = slice(first, first + m)
        self._width = min((int(positions.max()) // 8 + 1) * 8, columns)
        hidden = torch.from_numpy(np.arange(self._width) > positions[..., None]).to(shape.device)
        return (hidden.to(shape.dtype) * torch.finfo(shape.dtype).min).unsqueeze(1)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the block's new keys and values [m, heads, Q, dim]; return its rows' [m, heads, width, dim]."""
        keys, values = self._rows.keys[layer_idx], self._rows.values[layer_idx]
        return self._store(keys, key_states), self._store(values, value_states)

    def _store(self, stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        vectors = new.flatten(0, 2)
        if self._sources is not None:
            vectors = vectors[self._sources]
        stored.view(-1, stored.shape[-1]).index_copy_(0, self._targets, vectors)
        return stored[self._block, :, : self._width]
