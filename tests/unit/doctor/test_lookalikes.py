from __future__ import annotations

import numpy as np

from rtdetrv4.doctor.lookalikes import MAX_DISTANCE, copies, groups_alike, is_telling, nearest_alike


def flipped(value: int, bits: np.ndarray) -> int:
    for bit in bits.tolist():
        value ^= 1 << bit
    return value


def test_groups_and_nearest_are_those_of_a_direct_comparison() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**63, 600, dtype=np.uint64).tolist()
    for number in range(60):  # chains, copies and near misses
        source = int(rng.integers(len(values))) if number % 2 else len(values) - 1
        values.append(flipped(values[source], rng.choice(64, number % 7, replace=False)))
    hashes = np.array([*values, 0, 0, 1, 2**64 - 1], dtype=np.uint64)
    distance = np.array([[(one ^ other).bit_count() for other in map(int, hashes)] for one in map(int, hashes)])
    telling = np.array([12 <= int(value).bit_count() <= 52 for value in hashes])
    assert np.array_equal(is_telling(hashes), telling)
    near = (distance <= MAX_DISTANCE) & telling & telling[:, None]

    reach = near.astype(np.float32)
    for _ in range(8):
        reach = np.minimum(reach @ reach, 1)
    expected = sorted({tuple(np.flatnonzero(row).tolist()) for row in reach if row.sum() > 1})
    assert [tuple(group.tolist()) for group in groups_alike(hashes)] == expected
    assert any(len(group) > 2 for group in expected)

    half = len(hashes) // 2
    nearest = nearest_alike(hashes[half:], hashes[:half])
    among = np.where(near[half:, :half], distance[half:, :half], 65)
    assert np.array_equal(nearest >= 0, among.min(axis=1) <= MAX_DISTANCE)
    hits = np.flatnonzero(nearest >= 0)
    assert len(hits)
    assert np.array_equal(among[hits, nearest[hits]], among[hits].min(axis=1))


def test_without_images_nothing_looks_alike() -> None:
    nothing = np.zeros(0, dtype=np.uint64)
    assert groups_alike(nothing) == []
    assert nearest_alike(np.array([2**32 - 1], dtype=np.uint64), nothing).tolist() == [-1]


def test_copies_are_grouped_by_their_first() -> None:
    assert copies([b"x", b"y", b"z", b"y", b"x", b"y"]) == [[0, 4], [1, 3, 5]]
