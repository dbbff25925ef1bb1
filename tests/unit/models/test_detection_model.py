from __future__ import annotations

import pytest
import torch
from torch import nn

from rtdetrv4.assembly import create_model
from rtdetrv4.errors import ConfigError
from rtdetrv4.models import DetectionModel, fuse
from rtdetrv4.models.hybrid_encoder import sine_cosine_positions
from rtdetrv4.models.query_selection import QuerySelection, anchor_logits
from rtdetrv4.types import Targets


def small(num_classes: int = 3, num_queries: int = 15) -> DetectionModel:
    return create_model("test", num_classes, num_queries=num_queries, num_denoising=6)


def some_targets(*counts: int, num_classes: int = 3) -> Targets:
    return Targets.of([(torch.randint(num_classes, (n,)), torch.rand(n, 4) * 0.3 + 0.3) for n in counts])


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (320, 512)])
def test_any_multiple_of_32(size: tuple[int, int]) -> None:
    output = small().eval()(torch.rand(2, 3, *size))
    assert output.logits.shape == (2, 15, 3)
    assert output.boxes.shape == (2, 15, 4)
    assert output.training is None
    assert ((output.boxes[..., :2] >= 0) & (output.boxes[..., :2] <= 1)).all()


def test_training_output() -> None:
    model = small().train()
    output = model(torch.rand(2, 3, 64, 96), some_targets(2, 0))
    training = output.training
    assert training is not None
    assert training.denoising is not None
    assert training.queries.logits.shape == (2, 2, 15, 3)
    assert training.queries.corners is not None
    assert training.queries.corners.shape == (2, 2, 15, 4, 33)
    assert training.denoising.logits.shape == (2, 2, 2 * 2 * 3, 3)
    assert training.f5.shape == (2, 32, 2, 3)
    assert torch.equal(output.boxes, training.queries.boxes[-1])


def test_fewer_cells_than_queries() -> None:
    output = small(num_queries=300).eval()(torch.rand(1, 3, 32, 64))
    assert output.logits.shape[1] == 4 * 8 + 2 * 4 + 1 * 2


def test_weights_fit_any_size_and_number_of_queries() -> None:
    state = small(num_queries=15).state_dict()
    other = small(num_queries=40)
    other.load_state_dict(state)
    assert other.eval()(torch.rand(1, 3, 96, 64)).logits.shape[1] == 40
    assert not [name for name in state if "anchor" in name or "valid" in name]


def test_queries_are_the_same_whether_all_cells_have_a_graph_or_only_the_selected_ones() -> None:
    torch.manual_seed(0)
    selection = QuerySelection(8, 3, 5, "silu")
    nn.init.normal_(selection.box_head.layers[-1].weight)
    pyramid = [torch.randn(2, 8, 8, 8, requires_grad=True), torch.randn(2, 8, 4, 4, requires_grad=True)]
    results = []
    for training in (True, False):
        selection.train(training)
        selected = selection(pyramid)
        loss = (selected.logits**2).sum() + selected.boxes.sum()
        leaves = [*pyramid, *selection.parameters()]
        results.append((*selected, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_selection_learns_under_autocast() -> None:
    selection = QuerySelection(8, 3, 5, "silu").train()
    with torch.autocast("cpu", torch.bfloat16):
        selected = selection([torch.randn(2, 8, 8, 8)])
    selected.logits.float().square().sum().backward()
    assert selection.projection.weight.grad is not None
    assert selection.score_head.weight.grad.abs().sum() > 0


def test_denoising_does_not_change_the_selected_queries() -> None:
    model = small().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images = torch.rand(2, 3, 64, 64)
    without = model(images).training
    with_denoising = model(images, some_targets(2, 1)).training
    torch.testing.assert_close(with_denoising.queries.logits, without.queries.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(with_denoising.queries.boxes, without.queries.boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["test", "rtdetrv2-r18"])
def test_fusing_keeps_the_outputs(name: str) -> None:
    model = create_model(name, 3, num_queries=15).eval()
    for module in model.modules():  # statistics as after training, not the initial ones
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before, after = model(images), fuse(model)(images)
    torch.testing.assert_close(after.boxes, before.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    deployed = fuse(model)
    assert deployed.denoising is None
    assert not [module for module in deployed.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert model.denoising is not None


def test_positions_on_rectangles_say_row_and_column() -> None:
    height, width, dim = 3, 5, 16
    table = sine_cosine_positions(height, width, dim, device=torch.device("cpu")).view(height, width, dim)
    assert torch.equal(table[1, 0, :8], table[1, 4, :8])
    assert torch.equal(table[0, 3, 8:], table[2, 3, 8:])
    torch.testing.assert_close(table[2, 4, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(table[2, 4, 4], torch.tensor(2.0).cos())
    torch.testing.assert_close(table[2, 4, 8], torch.tensor(4.0).sin())
    assert len({tuple(row) for row in table.flatten(0, 1).tolist()}) == height * width


def test_anchors() -> None:
    anchors = anchor_logits([(4, 8), (2, 4)], device=torch.device("cpu")).sigmoid()
    assert anchors.shape == (40, 4)
    torch.testing.assert_close(anchors[9], torch.tensor([1.5 / 8, 1.5 / 4, 0.05, 0.05]))
    torch.testing.assert_close(anchors[32 + 4], torch.tensor([0.5 / 4, 1.5 / 2, 0.1, 0.1]))
    # On a map of 100 columns, the outermost center lies at 0.005: not inside (0.01, 0.99).
    edge = anchor_logits([(4, 100)], device=torch.device("cpu"))
    assert edge[0].isinf().all()
    assert edge[1].isfinite().all()


def test_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="rtdetrv4-s"):
        create_model("rtdetr4-s")
