"""The golden numbers are worth nothing if their inputs change, so what `golden.inputs` makes is pinned here."""

from __future__ import annotations

import numpy as np
import pytest

import golden


def fingerprint(array: np.ndarray) -> float:
    """A number that depends on every value and on their order, but hardly on rounding."""
    return float(array.ravel().astype(np.float64) @ np.linspace(-1, 2, array.size))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("decoder.decoder.layers.0.cross_attn.sampling_offsets.bias", [192], -10.418765),
        ("decoder.decoder.layers.0.cross_attn.sampling_offsets.weight", [192, 256], 4.8067494),
        ("backbone.stem.stem1.lab.scale", [1], -1.0706965),
        ("decoder.denoising_class_embed.weight", [81, 256], -110.19164),
        ("decoder.dec_bbox_head.0.layers.2.weight", [132, 256], -1.4385075),
        ("decoder.enc_score_head.bias", [80], -183.9049),
        ("encoder.encoder.0.layers.0.norm1.weight", [256], 127.95817),
        ("encoder.encoder.0.layers.0.norm1.bias", [256], 1.8493916),
        ("backbone.stem.stem1.conv.weight", [16, 3, 3, 3], 6.7160665),
    ],
)
def test_weights(name: str, shape: list[int], expected: float) -> None:
    assert fingerprint(golden.fill(name, shape)) == pytest.approx(expected, rel=1e-5)


def test_padding_class_embedding_is_zero() -> None:
    assert not golden.fill("decoder.denoising_class_embed.weight", [21, 8])[-1].any()


def test_image() -> None:
    assert fingerprint(golden.image(1, 64, 96)) == pytest.approx(4612.7975, rel=1e-5)


def test_targets() -> None:
    drawn = golden.targets(5, [3, 0, 7])
    assert [labels.tolist() for labels, _ in drawn] == [[44, 77, 75], [], [33, 7, 16, 14, 31, 9, 38]]
    assert fingerprint(np.concatenate([boxes for _, boxes in drawn])) == pytest.approx(8.8700432, rel=1e-5)


def test_statistics_are_taken_from_the_recording_and_constants_left_out() -> None:
    statistic = np.arange(4, dtype=np.float32)
    weights = golden.state_dict(
        [("norm.running_mean", [4]), ("norm.weight", [4]), ("decoder.anchors", [1, 2, 4])],
        {"bn/norm.running_mean": statistic},
    )
    assert list(weights) == ["norm.running_mean", "norm.weight"]
    assert weights["norm.running_mean"] is statistic
