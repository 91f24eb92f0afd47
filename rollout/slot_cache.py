"""Keys and values of the sequences that are being decoded side by side.

Owns where they stand. All rows end at the same column, as under left padding: a step writes one column, and masks,
sliding windows and positions count from there in every architecture. Rows `0 .. live - 1` are in use. It does not know
which job a row belongs to.

    column      0   1   2   3   4   5   6   7
    row 0       a   a   a   a   b                   first column 0
    row 1               c   d   d                   first column 2
                                ^ newest    ^ spare columns, masked

The model reads whole buffers, spare columns included, because a batched matrix product of half-precision numbers on
the CPU copies every operand that is a part of a larger one. So the buffers are kept a little wider than what they hold.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

LayerStates = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, heads, tokens, head size)."""

_SPARE_COLUMNS = 32
"""Width grows in these steps: each costs a copy of the cache, and spare columns cost their share of the attention."""


class SlotCache(Cache):
    """The cache that a model sees during a decode step.

    Args:
        layers: Attention layers of the model.
        slots: Rows.
        device: Where masks are made.
    """

    def __init__(self, *, layers: int, slots: int, device: torch.device) -> None:
        self._slot_layers = [SlotLayer(slots) for _ in range(layers)]
        super().__init__(layers=list(self._slot_layers))
        self._device = device
        self._firsts = np.zeros(slots, dtype=np.int64)
        self._live = self._end = self._width = 0

    @property
    def live(self) -> int:
        """Rows in use."""
        return self._live

    def insert(self, source: Sequence[LayerStates], source_rows: Sequence[int], tokens: int) -> None:
        """Appends rows that hold copies of the first `tokens` tokens of prefilled rows.

        Args:
            source: Keys and values by layer.
            source_rows: Which of its rows, one for each new row; may repeat.
            tokens: How many of their tokens.
        """
        if not self._live or self._end < tokens:
            self._move_end(max(tokens, self._longest))
        start, stop = self._live, self._live + len(source_rows)
        first = self._end - tokens
        index = torch.tensor(source_rows, device=self._device)
        for layer, (keys, values) in zip(self._slot_layers, source, strict=True):
            layer.fill(slice(start, stop), first, keys[index, :, :tokens], values[index, :, :tokens], self._width)
        self._firsts[start:stop] = first
        self._live = stop

    def remove(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Frees rows; the last ones in use move into the holes.

        Returns:
            (from, to) of every row that moved.
        """
        keep = self._live - len(rows)
        holes = [row for row in sorted(rows) if row < keep]
        movers = [row for row in range(keep, self._live) if row not in rows]
        if holes:
            columns = slice(int(self._firsts[movers].min()), self._end)
            for layer in self._slot_layers:
                layer.move(movers, holes, columns)
            self._firsts[holes] = self._firsts[movers]
        self._live = keep
        return list(zip(movers, holes, strict=True))

    def open_column(self) -> Tensor:
        """Makes room for one more token in every row.

        Returns:
            (live, width) mask, True where a row has a token, the new one included.
        """
        if self._end == self._width:
            self._move_end(self._longest)
        self._end += 1
        for layer in self._slot_layers:
            layer.open(self._live, self._end)
        columns = np.arange(self._width)
        mask = (columns >= self._firsts[: self._live, None]) & (columns < self._end)
        return torch.from_numpy(mask).to(self._device)

    @property
    def column(self) -> int:
        """The column that `open_column` has made room in, the newest one."""
        return self._end - 1

    def states(self) -> list[Tensor]:
        """Keys and values of all layers in turn, (live, heads, width, head size) each; what the model reads."""
        return [buffer for layer in self._slot_layers for buffer in layer.states()]

    @property
    def _longest(self) -> int:
        """Tokens of the longest row."""
        return self._end - int(self._firsts[: self._live].min()) if self._live else 0

    def _move_end(self, end: int) -> None:
        """Moves the content so that it ends at column `end`, in buffers of a width that fits."""
        first = self._end - self._longest
        self._width = end + _SPARE_COLUMNS
        for layer in self._slot_layers:
            layer.refit(slice(0, self._live), slice(first, self._end), end, self._width)
        self._firsts += end - self._end
        self._end = end


class SlotLayer(CacheLayerMixin):
    """One layer's share of a `SlotCache`; the model writes the newest column and reads the buffers.

    Args:
        slots: Rows.
    """

    is_sliding = False
    _keys: Tensor
    _values: Tensor

    def __init__(self, slots: int) -> None:
        super().__init__()
        self._slots = slots
        self._rows = self._end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Takes heads, sizes, dtype and device from the first states."""
        self._keys, self._values = self._buffer_like(key_states, 0), self._buffer_like(value_states, 0)
        self.is_initialized = True

    def fill(self, rows: slice, column: int, keys: Tensor, values: Tensor, width: int) -> None:
        """Writes (B, heads, tokens, head size) into rows, from a column on."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.refit(slice(0, 0), slice(0, 0), 0, width)
        columns = slice(column, column + keys.shape[2])
        self._keys[rows, :, columns] = keys
        self._values[rows, :, columns] = values

    def move(self, sources: Sequence[int], targets: Sequence[int], columns: slice) -> None:
        """Copies columns of some rows into others."""
        for buffer in (self._keys, self._values):
            for source, target in zip(sources, targets, strict=True):
                buffer[target, :, columns] = buffer[source, :, columns]

    def refit(self, rows: slice, columns: slice, end: int, width: int) -> None:
        """Moves columns of rows into buffers of another width, where they end at column `end`."""
        if not self.is_initialized:
            return
        moved = slice(end - (columns.stop - columns.start), end)
        keys, values = self._buffer_like(self._keys, width), self._buffer_like(self._values, width)
        keys[rows, :, moved] = self._keys[rows, :, columns]
        values[rows, :, moved] = self._values[rows, :, columns]
        self._keys, self._values = keys, values

    def open(self, rows: int, end: int) -> None:
        """The next `update` is of rows `0 .. rows - 1` and writes column `end - 1`."""
        self._rows, self._end = rows, end

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes (live, heads, 1, head size) into the newest column; returns (live, heads, width, head size)."""
        keys, values = self.states()
        keys[:, :, self._end - 1 : self._end] = key_states
        values[:, :, self._end - 1 : self._end] = value_states
        return keys, values

    def states(self) -> LayerStates:
        """Keys and values of the rows in use, each (live, heads, width, head size)."""
        return self._keys[: self._rows], self._values[: self._rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width and offset of the keys that the next `update` returns."""
        del query_length  # always 1
        return self.get_max_length(), 0

    def get_seq_length(self) -> int:
        """The column that the next `update` writes."""
        return self._end - 1

    def get_max_length(self) -> int:
        """Width of the buffers."""
        return self._keys.shape[2]

    def _buffer_like(self, states: Tensor, width: int) -> Tensor:
        """(slots, heads, width, head size)."""
        _, heads, _, size = states.shape
        # Zeros, because what is masked is still multiplied, by 0, and must be finite.
        return states.new_zeros((self._slots, heads, width, size))
