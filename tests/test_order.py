"""The sample stream: every epoch once, resumable at any step, the same for any number of workers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from efafnet.pipelines.crops.order import SampleOrder, slice_bounds
from efafnet.pipelines.crops.store import RowGroups

# Shards of 150, 70 and 5 rows in groups of 16.
_GROUPS = RowGroups.of([150, 70, 5], 16)
_ROWS = 225


def _order(seed: int = 0, window: int = 4, digest: str = "d") -> SampleOrder:
    return SampleOrder(_GROUPS, digest, seed, window)


def _stream(order: SampleOrder, steps: range, batch: int) -> np.ndarray:
    return np.concatenate([order.batch(step, batch).rows for step in steps])


def test_row_groups_worked_out() -> None:
    groups = RowGroups.of([40, 20], 16)
    assert groups.shard.tolist() == [0, 0, 0, 1, 1]
    assert groups.index.tolist() == [0, 1, 2, 0, 1]
    assert groups.first_row.tolist() == [0, 16, 32, 40, 56]
    assert groups.rows.tolist() == [16, 16, 8, 16, 4]
    assert groups.group_of(np.array([0, 15, 16, 39, 40, 59])).tolist() == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("window", [1, 4, 100])
def test_each_epoch_has_every_row_once(window: int) -> None:
    """Batches of 32 run across the ends of epochs: 225 steps of 32 are exactly 32 epochs."""
    order = _order(window=window)
    stream = _stream(order, range(225), 32).reshape(32, _ROWS)
    # Within a batch the samples are sorted by place, so an epoch's rows must be taken batch-wise at its border.
    by_epoch: dict[int, list[int]] = {}
    for step in range(225):
        planned = order.batch(step, 32)
        for epoch, row in zip(planned.epochs.tolist(), planned.rows.tolist(), strict=True):
            by_epoch.setdefault(epoch, []).append(row)
    assert sorted(by_epoch) == list(range(32))
    assert all(sorted(rows) == list(range(_ROWS)) for rows in by_epoch.values())
    assert not np.array_equal(stream[0], stream[1])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_workers_share_the_same_batch(world: int) -> None:
    for step in (0, 3, 13, 14, 700):
        whole = _order().batch(step, 32)
        parts = [_order().batch(step, 32, rank, world) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate([part.rows for part in parts]), whole.rows)
        np.testing.assert_array_equal(np.concatenate([part.epochs for part in parts]), whole.epochs)
        sizes = [len(part.rows) for part in parts]
        assert sizes == [len(piece) for piece in np.array_split(np.arange(32), world)]


def test_any_step_can_be_asked_for_first() -> None:
    """Resuming is asking a new reader for a later step."""
    through = _order()
    for step in range(50):
        through.batch(step, 32)
    np.testing.assert_array_equal(_order().batch(50, 32).rows, through.batch(50, 32).rows)


def test_order_depends_on_digest_seed_and_epoch() -> None:
    base = _stream(_order(), range(7), 32)
    np.testing.assert_array_equal(base, _stream(_order(), range(7), 32))
    assert not np.array_equal(base, _stream(_order(seed=1), range(7), 32))
    assert not np.array_equal(base, _stream(_order(digest="e"), range(7), 32))


def test_windows_come_one_after_the_other_and_are_of_similar_size() -> None:
    """16 groups in windows of at most 4 make 4 windows of 4, never a last one of a single group."""
    windows = np.concatenate([_order(window=4).batch(step, 25).windows for step in range(18)])
    assert (np.diff(windows) >= 0).all()
    assert windows.max() == 7
    seventeen = SampleOrder(RowGroups.of([17 * 16], 16), "d", 0, 16).epoch(0)
    assert sorted(np.bincount(seventeen.window).tolist()) == [8, 9]


def test_a_store_within_one_window_is_shuffled_as_a_whole() -> None:
    """Over 400 epochs, row 0 visits every tenth of the epoch equally often: 40 each, deviation 6."""
    order = _order(window=100)
    places = [int(np.flatnonzero(order.window(epoch, 0) == 0)[0]) for epoch in range(400)]
    counts = np.histogram(places, bins=10, range=(0, _ROWS))[0]
    assert np.abs(counts - 40).max() < 24


def test_ranks_read_little_more_than_their_share() -> None:
    """64 groups of 64 rows in one window, batches of 128: an epoch costs 8 ranks far less than 8 readings."""
    groups = RowGroups.of([4096], 64)
    order = SampleOrder(groups, "d", 0, 64)
    for world, limit in ((1, 1.0), (2, 1.3), (8, 2.5)):
        touched = 0
        for rank in range(world):
            seen = [order.batch(step, 128, rank, world).groups for step in range(32)]
            touched += len(np.unique(np.concatenate(seen)))
        assert touched <= limit * len(groups), f"{world} workers read {touched / len(groups):.2f} times"


def test_quality_of_the_shuffle() -> None:
    """How often two persons of one image meet in a batch, beside a full shuffle and a shuffle within windows.

    12,288 rows, images of 3 persons, groups of 64, windows of 48 groups (3,072 rows), batches of 64: 12,288 pairs. Two
    given rows meet in a batch of a full shuffle with probability 63 / 12,287 (0.33 pairs a batch), of a window shuffled
    at random with 63 / 3,071 (1.31 pairs).
    """
    groups = RowGroups.of([512] * 24, 64)
    order = SampleOrder(groups, "d", 0, 48)
    pairs = []
    for step in range(192):
        persons = np.bincount(order.batch(step, 64).rows // 3)
        pairs.append(int((persons * (persons - 1) // 2).sum()))
    assert np.mean(pairs) < 12288 * 63 / 12287 / 192
    # Where a row stands in the epoch says nothing about where it lies in the store: correlation 0 +- 1 / sqrt(192
    # groups).
    rows = np.concatenate([order.window(0, number) for number in range(4)])
    assert sorted(rows.tolist()) == list(range(12288))
    assert abs(np.corrcoef(rows, np.arange(12288))[0, 1]) < 0.22


def test_memory_grows_with_row_groups_not_with_rows() -> None:
    """A store of 50 million persons: the first batch needs one window of rows, not all of them."""
    order = SampleOrder(RowGroups.of([5_000_000] * 10, 5000), "d", 0, 4)
    tracemalloc.start()
    try:
        assert len(set(order.batch(0, 512).rows.tolist())) == 512
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_slice_bounds_worked_out() -> None:
    assert [slice_bounds(10, rank, 3) for rank in range(3)] == [(0, 4), (4, 7), (7, 10)]


def test_slices_in_whole_parts_are_made_of_the_same_parts_for_any_number_of_workers() -> None:
    assert [slice_bounds(64, rank, 3, 16) for rank in range(3)] == [(0, 32), (32, 48), (48, 64)]
    assert [slice_bounds(10, rank, 2, 4) for rank in range(2)] == [(0, 8), (8, 10)]
    for workers in (1, 2, 3, 4):
        cuts = [slice_bounds(62, rank, workers, 16) for rank in range(workers)]
        parts = [(a, min(a + 16, last)) for first, last in cuts for a in range(first, last, 16)]
        assert parts == [(0, 16), (16, 32), (32, 48), (48, 62)]


def test_a_resampled_stream_is_that_of_row_groups_drawn_with_replacement() -> None:
    """Every epoch has every drawn group as often as it was drawn, whole; seeds draw differently, workers alike."""
    groups = RowGroups.of([150, 70, 5], 16)
    order = SampleOrder(groups, "d", 7, 4, resampled=True)
    expected = np.concatenate([groups.first_row[g] + np.arange(groups.rows[g]) for g in order.drawn])
    assert len(order.drawn) == len(groups)
    assert len(set(order.drawn.tolist())) < len(groups)
    by_epoch: dict[int, list[int]] = {}
    for step in range(3 * len(expected)):
        planned = order.batch(step, 4)
        np.testing.assert_array_equal(planned.groups, groups.group_of(planned.rows))
        for epoch, row in zip(planned.epochs.tolist(), planned.rows.tolist(), strict=True):
            by_epoch.setdefault(epoch, []).append(row)
    assert sorted(by_epoch) == list(range(12))
    assert all(sorted(rows) == sorted(expected.tolist()) for rows in by_epoch.values())
    other = SampleOrder(groups, "d", 8, 4, resampled=True)
    assert not np.array_equal(order.drawn, other.drawn)
    halves = [order.batch(3, 32, rank, 2).rows for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), order.batch(3, 32).rows)


def test_a_draw_takes_about_two_thirds_of_the_row_groups() -> None:
    """With replacement n of n take part with probability 1 - (1 - 1/n)^n, 63.2 % of many."""
    many = RowGroups.of([16 * 4000], 16)
    drawn = SampleOrder(many, "d", 0, 64, resampled=True).drawn
    assert abs(len(np.unique(drawn)) / 4000 - 0.632) < 0.025
