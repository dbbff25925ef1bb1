"""Images to compare runtimes on: the same everywhere, and all different."""

from __future__ import annotations

from itertools import islice

import numpy as np

from rtdetrv4.runtime.scenes import digest, scenes


def test_the_same_on_every_machine() -> None:
    """Recorded; a version of numpy that draws other numbers would make stored detections useless."""
    assert [digest(image) for image in islice(scenes((64, 96)), 2)] == DIGESTS


def test_scenes_and_noise_in_turn() -> None:
    images = list(islice(scenes((64, 96)), 6))
    assert {image.shape for image in images} == {(64, 96, 3)}
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    assert len({digest(image) for image in images}) == 6
    # Neighbors in noise differ by 85 on average; a scene is mostly smooth.
    steps = [np.abs(np.diff(image.astype(int), axis=1)).mean() for image in images]
    assert max(steps[::2]) < 30 < 70 < min(steps[1::2])


DIGESTS = ["68cc6aa783d0fbab", "c2354749ebe74c07"]
