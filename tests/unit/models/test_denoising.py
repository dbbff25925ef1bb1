from __future__ import annotations

import torch

from rtdetrv4.models import ContrastiveDenoising
from rtdetrv4.types import Targets


def test_positives_stay_close_and_negatives_move_away() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.4, 0.6, 0.1, 0.3]])
    targets = Targets.of([(torch.tensor([0, 1]), boxes), (torch.tensor([2]), boxes[:1])])
    made = ContrastiveDenoising(3, 8, num_denoising=200, label_noise=0.0, box_noise=1.0)(targets)
    assert made.groups == (100, 2)
    noised = made.reference_logits.sigmoid().unflatten(1, (100, 2, 2))[0]  # group, positive or negative, box, 4
    sides = torch.cat((noised[..., :2] - noised[..., 2:] / 2, noised[..., :2] + noised[..., 2:] / 2), dim=-1)
    true = torch.cat((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), dim=-1)
    moved = (sides - true).abs() / (boxes[:, 2:].repeat(1, 2) / 2)
    assert moved[:, 0].max() <= 1.001
    # Sides that crossed each other were swapped, so only the outward half of the moves can be read off.
    outward = (sides - true) * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    far = (outward / (boxes[:, 2:].repeat(1, 2) / 2))[:, 1]
    assert far.max() > 1.5
    assert far.max() <= 2.001
    assert not ((far > 0.001) & (far < 0.999)).any()


def test_padding_is_no_class() -> None:
    torch.manual_seed(0)
    denoising = ContrastiveDenoising(3, 8, num_denoising=4, label_noise=1.0, box_noise=0.0)
    targets = Targets.of([(torch.tensor([0, 1]), torch.rand(2, 4)), (torch.tensor([2]), torch.rand(1, 4))])
    content = denoising(targets).content.unflatten(1, (-1, 2))
    assert content[1, :, 1].abs().max() == 0
    assert content[1, :, 0].abs().min() > 0


def test_half_of_the_label_noise_draws_a_new_label() -> None:
    denoising = ContrastiveDenoising(1000, 4, num_denoising=2000, label_noise=0.5, box_noise=0.0)
    targets = Targets.of([(torch.tensor([7]), torch.rand(1, 4))])
    content = denoising(targets).content[0]
    kept = (content == denoising.class_embedding.weight[7]).all(dim=1).float().mean()
    assert 0.72 < kept < 0.78


def test_a_batch_without_boxes_still_reaches_the_embedding() -> None:
    denoising = ContrastiveDenoising(3, 8, num_denoising=10, label_noise=0.5, box_noise=1.0)
    made = denoising(Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0, 0)))
    assert made.content.shape == (2, 0, 8)
    made.content.sum().backward()
    assert denoising.class_embedding.weight.grad is not None
