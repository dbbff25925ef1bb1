from __future__ import annotations

import math

from rtdetrv4.training.position import Position


def test_patience_counts_evaluations_without_a_better_score():
    position = Position()
    counts = []
    for score in (0.2, 0.2, 0.1, 0.3, 0.3):
        position.judge(score, {})
        counts.append(position.evaluations_without_gain)
    assert counts == [0, 1, 2, 0, 1]
    assert [position.is_out_of_patience(patience) for patience in (1, 2, None)] == [True, False, False]


def test_validation_images_without_objects_use_up_no_patience():
    position = Position()
    for _ in range(3):
        assert position.judge(math.nan, {})  # the latest weights are as good as any
        assert position.best_score is None
    assert not position.is_out_of_patience(1)
    assert position.judge(0.0, {})
    assert not position.judge(math.nan, {})
    assert not position.is_out_of_patience(1)
