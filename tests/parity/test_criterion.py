"""Every loss term of a complete training forward with denoising, from the released code's predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import golden
from rtdetrv4.distillation import alignment_loss
from rtdetrv4.losses import Criterion, HungarianMatcher
from rtdetrv4.types import DenoisingGroups, DetectorOutput, HeadOutput, Targets, TrainingOutput


def tensor(arrays: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(arrays[name])


def stack(arrays: dict[str, np.ndarray], prefixes: list[str], pre: str) -> HeadOutput:
    def layers(entry: str) -> torch.Tensor:
        return torch.stack([tensor(arrays, prefix + entry) for prefix in prefixes])

    local = prefixes[0] + "pred_corners" in arrays
    corners = layers("pred_corners").unflatten(-1, (4, -1)) if local else None
    has_pre = pre + "pred_boxes" in arrays
    return HeadOutput(
        layers("pred_logits"),
        layers("pred_boxes"),
        corners,
        tensor(arrays, prefixes[0] + "ref_points") if local else None,
        tensor(arrays, pre + "pred_logits") if has_pre else None,
        tensor(arrays, pre + "pred_boxes") if has_pre else None,
    )


def recorded_output(arrays: dict[str, np.ndarray]) -> DetectorOutput:
    queries = stack(arrays, ["aux_outputs/0/", "aux_outputs/1/", ""], "pre_outputs/")
    denoising = stack(arrays, [f"dn_outputs/{layer}/" for layer in range(3)], "dn_pre_outputs/")
    most = max(len(arrays[f"targets/{image}/labels"]) for image in range(3))
    groups = DenoisingGroups(int(arrays["dn_meta/dn_num_group"]), most)
    training = TrainingOutput(
        queries,
        tensor(arrays, "enc_aux_outputs/0/pred_logits"),
        tensor(arrays, "enc_aux_outputs/0/pred_boxes"),
        torch.empty(0),
        denoising,
        groups,
    )
    return DetectorOutput(queries.logits[-1], queries.boxes[-1], training)


def recorded_targets(arrays: dict[str, np.ndarray]) -> Targets:
    return Targets.of(
        [(tensor(arrays, f"targets/{image}/labels"), tensor(arrays, f"targets/{image}/boxes")) for image in range(3)]
    )


def recorded_criterion(facts: dict[str, Any]) -> Criterion:
    return Criterion(
        HungarianMatcher(),
        classification="mal" if "mal" in facts["losses_used"] else "vfl",
        alpha=facts["alpha"],
        gamma=facts["gamma"],
        union_matching=facts["use_uni_set"],
        local_terms="local" in facts["losses_used"],
        reg_max=facts["reg_max"],
    )


@pytest.mark.parametrize("name", ["criterion_s", "criterion_dfine", "criterion_v2"])
def test_every_term(name: str) -> None:
    facts, arrays = golden.load(name)
    terms = recorded_criterion(facts)(recorded_output(arrays), recorded_targets(arrays))
    if "student_distill_output" in arrays:
        terms["distill"] = alignment_loss(
            tensor(arrays, "student_distill_output"), tensor(arrays, "teacher_encoder_output")
        )
    weights = {key.removeprefix("loss_"): value for key, value in facts["weight_dict"].items()}
    weighted = {f"loss_{key}": value.item() * weights[key.partition("_")[0]] for key, value in terms.items()}
    assert weighted == pytest.approx(facts["losses"], rel=1e-3)


@pytest.mark.parametrize("name", ["criterion_s", "criterion_dfine", "criterion_v2"])
def test_matches_of_the_last_layer(name: str) -> None:
    _, arrays = golden.load(name)
    targets = recorded_targets(arrays)
    output = recorded_output(arrays)
    matches = HungarianMatcher()(output.logits[None], output.boxes[None], targets).each()
    ours = set(zip(*(index[0].tolist() for index in matches), strict=True))
    starts = np.cumsum([0, *targets.counts])
    theirs = {
        (image, int(query), int(starts[image] + target))
        for image in range(3)
        for query, target in zip(arrays[f"matches/{image}/query"], arrays[f"matches/{image}/target"], strict=True)
    }
    assert ours == theirs
