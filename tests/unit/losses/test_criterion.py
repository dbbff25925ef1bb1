"""The batched criterion against a plain one with loops, and the inputs that used to break others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from rtdetrv4.assembly import create_model
from rtdetrv4.losses import Criterion, HungarianMatcher, weighted_sum
from rtdetrv4.losses.localization import box_losses
from rtdetrv4.losses.matcher import MatchedHeads
from rtdetrv4.ops.boxes import xyxy_from_cxcywh
from rtdetrv4.types import DetectorOutput, HeadOutput, Targets, TrainingOutput

WEIGHTS = {"mal": 1.0, "vfl": 1.0, "bbox": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}


def targets_of(*counts: int, num_classes: int) -> Targets:
    return Targets.of(
        [
            (torch.randint(num_classes, (n,)), torch.cat((torch.rand(n, 2) * 0.6 + 0.2, torch.rand(n, 2) * 0.3), 1))
            for n in counts
        ]
    )


def random_output(layers: int, batch: int, queries: int, classes: int) -> DetectorOutput:
    boxes = torch.rand(layers + 2, batch, queries, 4) * 0.4 + 0.2
    logits = torch.randn(layers + 2, batch, queries, classes)
    head = HeadOutput(
        logits[:layers],
        boxes[:layers],
        torch.randn(layers, batch, queries, 4, 33),
        boxes[layers],
        logits[layers],
        boxes[layers],
    )
    training = TrainingOutput(head, logits[layers + 1], boxes[layers + 1], torch.empty(0))
    return DetectorOutput(logits[0], boxes[0], training)


def plain_match(
    logits: torch.Tensor, boxes: torch.Tensor, true_labels: torch.Tensor, true_boxes: torch.Tensor
) -> list[tuple[int, int]]:
    p = logits.sigmoid()[:, true_labels]
    cls = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
    giou = generalized_box_iou(xyxy_from_cxcywh(boxes), xyxy_from_cxcywh(true_boxes))
    cost = 2 * cls + 5 * torch.cdist(boxes, true_boxes, p=1) - 2 * giou
    return list(zip(*(index.tolist() for index in linear_sum_assignment(cost.numpy())), strict=True))


def test_equals_a_plain_implementation() -> None:
    layers, queries, classes = 3, 12, 5
    targets = targets_of(4, 0, 20, 1, num_classes=classes)  # in the third image, more boxes than queries
    output = random_output(layers, 4, queries, classes)
    terms = Criterion(HungarianMatcher())(output, targets)

    training = output.training
    assert training is not None
    assert training.queries.pre_logits is not None
    assert training.queries.pre_boxes is not None
    heads = {f"_aux_{i}": (training.queries.logits[i], training.queries.boxes[i]) for i in range(layers - 1)}
    heads[""] = (training.queries.logits[-1], training.queries.boxes[-1])
    heads["_pre"] = (training.queries.pre_logits, training.queries.pre_boxes)
    heads["_enc_0"] = (training.encoder_logits, training.encoder_boxes)
    matches = {
        name: [plain_match(logits[i], boxes[i], *own) for i, own in enumerate(targets.split())]
        for name, (logits, boxes) in heads.items()
    }
    votes: dict[tuple[int, int], dict[int, int]] = {}
    for per_image in matches.values():
        for image, pairs in enumerate(per_image):
            for query, target in pairs:
                counts = votes.setdefault((image, query), {})
                counts[target] = counts.get(target, 0) + 1
    # Ties have a rule of their own, tested below; here compare the number of matched queries and the class terms.
    num_boxes = len(targets.labels)
    for name, (logits, boxes) in heads.items():
        expected = torch.zeros(())
        for image, (true_labels, true_boxes) in enumerate(targets.split()):
            soft, weight = torch.zeros(queries, classes), logits[image].sigmoid() ** 1.5
            for query, index in matches[name][image]:
                pair = xyxy_from_cxcywh(torch.stack((boxes[image, query], true_boxes[index])))
                low, high = pair[:, :2].amax(0), pair[:, 2:].amin(0)
                inner = (high - low).clamp(min=0).prod()
                area = (pair[:, 2:] - pair[:, :2]).prod(1)
                label = true_labels[index]
                soft[query, label] = (inner / (area.sum() - inner)) ** 1.5
                weight[query, label] = 1
            loss = F.binary_cross_entropy_with_logits(logits[image], soft, weight, reduction="sum")
            expected = expected + loss / num_boxes
        torch.testing.assert_close(terms[f"mal{name}"], expected)

    criterion = Criterion(HungarianMatcher())
    heads_table = next(iter(criterion.supervised_heads(training, targets)))
    assert heads_table.box_matches.query.shape[1] == len(votes)
    starts = np.cumsum([0, *targets.counts])
    for image, query, target in zip(*(index[0].tolist() for index in heads_table.box_matches), strict=True):
        counts = votes[image, query]
        assert counts[int(target - starts[image])] == max(counts.values())


def test_union_keeps_the_most_frequent_target() -> None:
    # Three heads, one image: query 0 gets target 1 twice and target 0 once; query 1 gets targets 0 and 2 once each.
    pairs = np.array([[[0, 0]] * 3, [[0, 1], [0, 1], [0, 2]], [[0, 0], [1, 2], [1, 3]]])
    union = MatchedHeads(pairs, num_queries=5, device=torch.device("cpu")).union()
    kept = dict(zip(union.query[0].tolist(), union.target[0].tolist(), strict=True))
    assert kept == {0: 1, 1: 2, 2: 3}  # the tie goes against target 0, whose voter is the earliest head


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (300, 0)])
@pytest.mark.parametrize("num_classes", [1, 4])
def test_every_parameter_gets_a_finite_gradient(counts: tuple[int, ...], num_classes: int) -> None:
    model = create_model("test", num_classes, num_queries=12, num_denoising=5).train()
    targets = targets_of(*counts, num_classes=num_classes)
    output = model(torch.rand(len(counts), 3, 64, 64), targets)
    terms = Criterion(HungarianMatcher())(output, targets)
    weighted_sum(terms, WEIGHTS).backward()
    assert all(value.isfinite() for value in terms.values())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_degenerate_boxes() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.3, 0.1, 0.0], [1.0, 1.0, 0.0, 0.0]])
    targets = Targets.of([(torch.tensor([0, 1, 1]), boxes)])
    output = random_output(2, 1, 6, 2)
    terms = Criterion(HungarianMatcher())(output, targets)
    assert all(value.isfinite() for value in terms.values())


def test_boxes_of_negative_size_neither_pay_nor_match() -> None:
    """Edge distributions can give them; unbounded, their GIoU drew a whole run to them."""
    true = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    inverted = torch.tensor([[[0.5, 0.5, -0.4, -0.4]]], requires_grad=True)
    terms = box_losses(inverted, true)
    assert 1 <= terms.giou.item() <= 2
    (5 * terms.bbox + 2 * terms.giou).sum().backward()
    assert inverted.grad is not None
    assert (inverted.grad[0, 0, 2:] < 0).all()  # a step against it makes the box wider and higher

    boxes = torch.cat((inverted.detach(), torch.tensor([[[0.4, 0.4, 0.1, 0.1]]])), dim=1)[None]
    targets = Targets.of([(torch.tensor([0]), true[0])])
    assert HungarianMatcher()(torch.zeros(1, 1, 2, 1), boxes, targets).each().query.tolist() == [[1]]


def test_diverged_predictions_reach_the_loss() -> None:
    output = random_output(2, 1, 6, 2)
    assert output.training is not None
    output.training.queries.boxes[0, 0, 0] = float("nan")
    terms = Criterion(HungarianMatcher())(output, targets_of(6, num_classes=2))
    assert not weighted_sum(terms, WEIGHTS).isfinite()


def test_eval_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="train mode"):
        Criterion(HungarianMatcher())(
            DetectorOutput(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)), targets_of(0, num_classes=3)
        )


def test_weighted_sum_takes_the_weight_of_the_base_name() -> None:
    terms = {"bbox": torch.tensor(1.0), "bbox_aux_0": torch.tensor(2.0), "giou_dn_pre": torch.tensor(3.0)}
    assert weighted_sum(terms, {"bbox": 5.0, "giou": 2.0}).item() == 5 + 10 + 6
    with pytest.raises(KeyError):
        weighted_sum(terms, {"bbox": 5.0})
