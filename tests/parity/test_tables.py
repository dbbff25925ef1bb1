"""Tables recorded from the released code: exact to 1e-6."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch

import golden
from rtdetrv4.distillation import next_weight
from rtdetrv4.losses.matcher import denoising_matches
from rtdetrv4.models.denoising import attention_allowed, group_layout
from rtdetrv4.ops.boxes import cxcywh_from_xyxy
from rtdetrv4.ops.distribution import decode_boxes, encode_edges, weighting
from rtdetrv4.types import Targets

SCHEDULES = golden.table("schedules")


def test_modulation() -> None:
    for row in SCHEDULES["gam"]:
        weight, reason = next_weight(
            row["weight"],
            row["aifi_grad_percent"],
            rho=row["rho"],
            delta=row["delta"],
            default_weight=row["default_weight"],
            refinement=row["refinement_stage"],
        )
        assert weight == pytest.approx(row["new_weight"], rel=1e-9), row
        expected = {
            "reset": {"reset"},
            "stage2 default": {"refinement"},
            "unchanged": {"inside"},
            "adjusted": {"below", "above"},
        }
        assert reason in expected[row["reason"]], row


@pytest.mark.parametrize("key", SCHEDULES["weighting"])
def test_weighting(key: str) -> None:
    options = dict(part.split("=") for part in key.split(","))
    values = weighting(int(options["reg_max"]), float(options["reg_scale"]), float(options["up"]))
    np.testing.assert_allclose(values.numpy(), SCHEDULES["weighting"][key], rtol=0, atol=1e-6)


def test_edge_targets() -> None:
    row = SCHEDULES["fgl_target"]
    values = weighting(row["reg_max"], row["reg_scale"], row["up"])
    reference, boxes = torch.tensor(row["reference_cxcywh"]), torch.tensor(row["target_xyxy"])
    target = encode_edges(reference, boxes, values, row["reg_scale"])
    weight_right = target.weight_right.flatten().numpy()
    # Beyond the last bin the recorded code says "bin reg_max − 0.1, weight 1 to the right": our bin reg_max − 1.
    left_bin = np.floor(np.minimum(row["left_bin"], row["reg_max"] - 1))
    np.testing.assert_array_equal(target.left_bin.flatten().numpy(), left_bin)
    np.testing.assert_allclose(weight_right, row["weight_right"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(target.weight_left.flatten().numpy(), row["weight_left"], rtol=0, atol=1e-6)


def test_decoding() -> None:
    row = SCHEDULES["decode"]
    boxes = decode_boxes(torch.tensor(row["reference_cxcywh"]), torch.tensor(row["distance"]), row["reg_scale"])
    np.testing.assert_allclose(boxes.numpy(), row["boxes_cxcywh"], rtol=0, atol=1e-6)


def test_encoding_inverts_decoding() -> None:
    reference = torch.rand(50, 4) * 0.4 + 0.3
    offsets = torch.rand(50, 4) * 6 - 3
    values = weighting(32, 4.0)
    boxes = decode_boxes(reference, offsets, 4.0)
    low_high = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), dim=1)
    target = encode_edges(reference, low_high, values, 4.0)
    found = values[target.left_bin] * target.weight_left + values[target.left_bin + 1] * target.weight_right
    torch.testing.assert_close(found, offsets, rtol=0, atol=1e-4)
    torch.testing.assert_close(cxcywh_from_xyxy(low_high), boxes)


@pytest.mark.parametrize("row", golden.table("denoising"), ids=lambda row: str(row["targets_per_image"]))
def test_denoising_layout(row: dict[str, Any]) -> None:
    counts = row["targets_per_image"]
    groups = group_layout(row["num_denoising"], max(counts))
    assert groups.num_groups == row["num_group"]
    assert 2 * groups.num_groups * groups.max_targets == row["num_dn"]

    blocked = ~attention_allowed(groups, row["num_queries"])
    assert list(blocked.shape) == row["mask_shape"]
    assert int(blocked.sum()) == row["mask_blocked"]
    packed = np.packbits(blocked.numpy()).tobytes()
    if row["mask_packbits_hex"] is not None:
        assert packed.hex() == row["mask_packbits_hex"]
    assert hashlib.sha256(packed).hexdigest() == row["mask_sha256"]

    targets = Targets.of([(torch.zeros(count, dtype=torch.int64), torch.rand(count, 4)) for count in counts])
    matches = denoising_matches(targets, groups.num_groups, groups.max_targets)
    for image, positives in enumerate(row["positive_idx"]):
        assert sorted(matches.query[matches.image == image].tolist()) == sorted(positives)
