"""Rows of keys and values: growth, copies, the longest common beginning, and which kept row gives way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trace_gym.engine import IntArray
from trace_gym.engines.kv import KeptRows, RaggedCache, Rows, Shape

SHAPE = Shape(layers=2, heads=3, key_dim=4, value_dim=5, dtype=torch.float32, device=torch.device("cpu"))


def fill(rows: Rows, row: int, tokens: list[int]) -> None:
    """A row whose keys and values are its tokens."""
    rows.reserve(row + 1, len(tokens))
    rows.tokens[row, : len(tokens)] = tokens
    rows.filled[row] = len(tokens)
    numbers = torch.tensor(tokens, dtype=torch.float32)[:, None]
    rows.keys[:, row, :, : len(tokens)] = numbers
    rows.values[:, row, :, : len(tokens)] = -numbers


def holds(rows: Rows, row: int, tokens: list[int]) -> bool:
    n = len(tokens)
    numbers = torch.tensor(tokens, dtype=torch.float32)[:, None].expand(2, 3, n, 1)
    return (
        rows.filled[row] == n
        and rows.tokens[row, :n].tolist() == tokens
        and bool((rows.tokens[row, n:] == -1).all())
        and torch.equal(rows.keys[:, row, :, :n], numbers.expand(2, 3, n, 4))
        and torch.equal(rows.values[:, row, :, :n], -numbers.expand(2, 3, n, 5))
    )


def array(tokens: list[int]) -> IntArray:
    return np.array(tokens, dtype=np.int32)


def test_growth_keeps_what_is_there_and_adds_zeros() -> None:
    rows = Rows(SHAPE, 9, 1000)
    fill(rows, 0, [1, 2, 3])
    small = rows.keys
    rows.reserve(1, 60)
    assert rows.keys is small  # within the first bucket
    rows.reserve(5, 500)
    assert holds(rows, 0, [1, 2, 3])
    assert float(rows.keys.sum()) == 6 * 2 * 3 * 4
    rows.reserve(9, 1000)
    assert rows.tokens.shape == (9, 1000)
    rows.free()
    assert rows.keys.numel() == rows.values.numel() == rows.tokens.size == 0


def test_take_copies_the_beginning_of_a_row() -> None:
    rows, other = Rows(SHAPE, 3, 10), Rows(SHAPE, 3, 10)
    fill(rows, 0, [1, 2, 3, 4])
    fill(other, 1, [7, 8, 9, 7, 8])
    other.take(1, rows, 0, 3)
    assert holds(other, 1, [1, 2, 3])
    rows.wipe(0)
    assert holds(other, 1, [1, 2, 3]) and holds(rows, 0, [])
    assert not rows.keys.any() and not rows.values.any()


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=5), st.lists(st.integers(0, 2), max_size=8))
def test_longest_is_the_longest_common_beginning(contents: list[list[int]], prefix: list[int]) -> None:
    rows = Rows(SHAPE, 5, 8)
    for row, tokens in enumerate(contents):
        fill(rows, row, tokens)

    def common(tokens: list[int]) -> int:
        return next(
            (i for i, (a, b) in enumerate(zip(tokens, prefix, strict=False)) if a != b),
            min(len(tokens), len(prefix)),
        )

    for start in range(len(contents) + 1):
        row, count = rows.longest(array(prefix), start, len(contents))
        assert count == max((common(tokens) for tokens in contents[start:]), default=0)
        if count:
            assert row >= start and common(contents[row]) == count


def test_the_kept_row_longest_out_of_use_gives_way() -> None:
    source, kept = Rows(SHAPE, 1, 10), KeptRows(SHAPE, 2, 10)
    for tokens in ([1, 1], [2, 2]):
        fill(source, 0, tokens)
        kept.keep(source, 0)
    kept.touch(0)
    source.drop(0)
    fill(source, 0, [3, 3, 3])
    kept.keep(source, 0)
    assert holds(kept, 0, [1, 1]) and holds(kept, 1, [3, 3, 3])
    kept.drop(0)
    source.drop(0)
    fill(source, 0, [4])
    kept.keep(source, 0)
    assert holds(kept, 0, [4]) and holds(kept, 1, [3, 3, 3])


def test_a_kept_row_is_kept_once_and_replaced_by_one_that_contains_it() -> None:
    source, kept = Rows(SHAPE, 1, 10), KeptRows(SHAPE, 3, 10)
    for tokens, expected in (
        ([5, 6], [5, 6]),
        ([5, 6, 7], [5, 6, 7]),
        ([5], [5, 6, 7]),
        ([5, 6, 7], [5, 6, 7]),
    ):
        source.drop(0) if len(source.filled) else None
        fill(source, 0, tokens)
        kept.keep(source, 0)
        assert holds(kept, 0, expected)
        assert (kept.filled > 0).sum() == 1
    source.drop(0)
    fill(source, 0, [5, 6, 8])
    kept.keep(source, 0)
    assert holds(kept, 0, [5, 6, 7]) and holds(kept, 1, [5, 6, 8])


def test_a_cache_without_room_or_memory_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source, none = Rows(SHAPE, 1, 10), KeptRows(SHAPE, 0, 10)
    fill(source, 0, [1, 2])
    none.keep(source, 0)
    assert none.longest(array([1, 2]), 0, 0) == (0, 0)
    kept = KeptRows(SHAPE, 2, 10)

    def full(rows: int, columns: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kept, "reserve", full)
    kept.keep(source, 0)
    assert kept.longest(array([1, 2]), 0, 2) == (0, 0)


def test_the_cache_writes_real_tokens_at_their_positions_and_hides_what_follows() -> None:
    rows = Rows(SHAPE, 3, 40)
    rows.reserve(3, 40)
    cache = RaggedCache(rows)
    positions, pads = np.array([[4, 5, 6], [0, 0, 20]]), np.array([0, 2])
    mask = cache.place(1, positions, pads)
    assert mask.shape == (2, 1, 3, 24)  # a multiple of 8 that holds column 20
    assert (mask[0, 0] == 0).sum(-1).tolist() == [5, 6, 7]
    assert (mask[1, 0] == 0).sum(-1).tolist() == [1, 1, 21]
    assert bool((mask[mask != 0] == torch.finfo(torch.float32).min).all())
    new = torch.arange(1.0, 2 * 3 * 3 * 4 + 1).reshape(2, 3, 3, 4)  # [rows, heads, Q, dim]
    keys, values = cache.update(new, -torch.ones(2, 3, 3, 5), 1)
    assert keys.shape == (2, 3, 24, 4) and values.shape == (2, 3, 24, 5)
    assert torch.equal(keys[0, :, 4:7], new[0])
    assert torch.equal(keys[1, :, 20], new[1, :, 2])
    assert not keys[1, :, :20].any() and not rows.keys[0].any() and not rows.keys[1, 0].any()
    mask = cache.place(0, np.array([[7]]))
    assert mask.shape == (1, 1, 1, 8)
    cache.update(torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 5), 0)
    assert rows.keys[0, 0].sum(0).sum(-1).nonzero().tolist() == [[7]]


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_store_near_its_limit_gives_up_what_is_not_used() -> None:
    rows = Rows(SHAPE, 100, 1000, limit=1000)
    fill(rows, 0, list(range(300)))
    assert rows.tokens.shape == (1, 320)
    rows.drop(0)
    for row in range(6):
        fill(rows, row, [row] * 40)
        assert rows.tokens.size <= 1000
    assert rows.tokens.shape[0] >= 6
    assert all(holds(rows, row, [row] * 40) for row in range(6))
    fill(rows, 6, [6] * 100)  # what is in use stays, whatever the limit
    assert all(holds(rows, row, [row] * 40) for row in range(6)) and holds(rows, 6, [6] * 100)


def test_kept_rows_longest_out_of_use_give_way_to_a_smaller_bound() -> None:
    source, kept = Rows(SHAPE, 4, 64), KeptRows(SHAPE, 4, 64)
    for row in range(4):
        fill(source, row, [10 * row + i for i in range(5)])
        kept.keep(source, row)
    kept.touch(kept.longest(array([0, 1]), 0, 4)[0])
    kept.bound(2 * 64)
    assert kept.tokens.shape == (2, 64)
    found = {kept.longest(array([10 * row + i for i in range(5)]), 0, 4)[1]: row for row in (1, 2)}
    assert found == {0: 2}
    assert sorted(int(kept.tokens[row, 0]) for row in range(2)) == [0, 30]
    assert all(holds(kept, row, [int(kept.tokens[row, 0]) + i for i in range(5)]) for row in range(2))
    kept.keep(source, 2)  # over row 3's, the older one now
    assert sorted(int(kept.tokens[row, 0]) for row in range(2)) == [0, 20]
    kept.bound(63)
    assert kept.keys.numel() == 0 and not kept.used.any()
    kept.keep(source, 0)
    assert kept.keys.numel() == 0


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12), st.integers(0, 900))
def test_kept_rows_never_hold_more_than_their_bound(lengths: list[int], limit: int) -> None:
    source, kept = Rows(SHAPE, 1, 256), KeptRows(SHAPE, 6, 256, limit=limit)
    for start, length in enumerate(lengths):
        fill(source, 0, list(range(start, start + length)))
        kept.keep(source, 0)
        assert kept.tokens.size <= limit
        row, common = kept.longest(array(list(range(start, start + length))), 0, 6)
        if 2 * -(-length // 64) * 64 <= limit and max(lengths[: start + 1]) == length:
            assert common == length and holds(kept, row, list(range(start, start + length)))
