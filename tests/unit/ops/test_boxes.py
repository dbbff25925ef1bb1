from __future__ import annotations

import torch
from torchvision.ops import box_iou, generalized_box_iou

from rtdetrv4.ops.boxes import cxcywh_from_xyxy, inverse_sigmoid, overlap, xyxy_from_cxcywh


def random_boxes(count: int) -> torch.Tensor:
    low = torch.rand(count, 2) * 0.5
    return torch.cat((low, low + torch.rand(count, 2) * 0.5), dim=1)


def test_formats_are_inverse() -> None:
    boxes = random_boxes(50)
    torch.testing.assert_close(xyxy_from_cxcywh(cxcywh_from_xyxy(boxes)), boxes)


def test_overlap_equals_torchvision_for_every_pair() -> None:
    a, b = random_boxes(20), random_boxes(30)
    ours = overlap(a[:, None], b[None])
    torch.testing.assert_close(ours.iou, box_iou(a, b))
    torch.testing.assert_close(ours.giou, generalized_box_iou(a, b))


def test_boxes_without_area_are_ordinary_input() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    both = overlap(point, point.detach())
    assert both.iou.item() == 0
    (both.iou + both.giou).sum().backward()
    assert point.grad is not None
    assert point.grad.isfinite().all()


def test_boxes_of_negative_size_have_no_area_and_gain_nothing() -> None:
    predicted, true = torch.rand(200, 4) * 2 - 1, torch.rand(200, 4)
    xyxy = xyxy_from_cxcywh(predicted)
    assert (xyxy[:, 2:] >= xyxy[:, :2]).all()
    both = overlap(xyxy, xyxy_from_cxcywh(true))
    assert both.giou.abs().max() <= 1
    assert (both.iou[(predicted[:, 2:] <= 0).any(dim=1)] == 0).all()


def test_inverse_sigmoid() -> None:
    x = torch.linspace(0.01, 0.99, 20)
    torch.testing.assert_close(inverse_sigmoid(x).sigmoid(), x)
    assert inverse_sigmoid(torch.tensor([0.0, 1.0, -3.0, 4.0])).isfinite().all()
