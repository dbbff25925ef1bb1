"""Mistakes in a training loop that would let distillation go wrong without a word."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rtdetrv4.distillation import Modulation, Tap
from rtdetrv4.distillation.watch import CHECK_EVERY, Watch
from rtdetrv4.errors import ConfigError
from tap_ranks import Detector, make_images, make_tapped, make_teacher, step


def train(model: nn.Module, tap: Tap, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        step(model, tap, make_images())
        optimizer.step()


# ---- the projector is trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True], ids=["layer trained", "layer frozen"])
def test_an_optimizer_that_was_made_before_the_tap(frozen: bool) -> None:
    model = Detector()
    model.stem = nn.Conv2d(3, 3, 1)  # type: ignore[assignment]
    model.forward = lambda images: model.head(model.encoder(model.stem(images)))  # type: ignore[method-assign]
    model.encoder.requires_grad_(not frozen)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    with pytest.raises(ConfigError, match="not the projector of the tap, because it was made before the tap"):
        train(model, tap, optimizer, 2)
    optimizer.add_param_group({"params": model.tap.parameters()})  # what the message says
    train(model, tap, optimizer, 3)


def test_steps_that_change_nothing_are_no_reason_to_complain() -> None:
    """A first step at a learning rate of 0, and one that a gradient scaler skips."""
    model, tap = make_tapped()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    train(model, tap, optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.01
    train(model, tap, optimizer, 3)


def test_steps_without_distillation_are_no_reason_to_complain() -> None:
    """The projector stays the same where the loss is left out, and where λ is 0."""
    for weight in (0.0, 5.0):
        model = Detector()
        tap = Tap(model, "encoder", make_teacher(), Modulation(weight), dim=4)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for number in range(4):
            optimizer.zero_grad()
            loss = model(make_images()).square().mean()
            (loss + tap.loss(make_images()) if number % 2 == 0 else loss).backward()
            tap.observe()
            optimizer.step()
        tap.end_epoch()


def test_a_resumed_run_is_not_taken_for_an_untrained_one() -> None:
    model, tap = make_tapped()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    optimizer.zero_grad()
    step(model, tap, make_images())
    saved = copy.deepcopy(model.state_dict())
    saved["encoder.weight"] += 1
    model.load_state_dict(saved)
    train(model, tap, optimizer, 2)


# ---- frozen parts ---------------------------------------------------------------------------------------------------


def test_a_frozen_layer_has_no_share_of_the_gradient() -> None:
    model, tap = make_tapped()  # adapts λ
    model.encoder.requires_grad_(False)
    images = make_images().requires_grad_()  # as if something before the layer were trained
    model(images)
    (model(images).square().mean() + tap.loss(images)).backward()
    with pytest.raises(ConfigError, match=r'Layer "encoder" is frozen.*rule="fixed"'):
        tap.observe()
    tap.modulation.rule = "fixed"
    tap.observe()


def test_nothing_that_computes_f5_is_trained() -> None:
    model, tap = make_tapped()
    model.encoder.requires_grad_(False)
    model(make_images())
    with pytest.raises(ConfigError, match='Nothing that computes the output of layer "encoder" is trained'):
        tap.loss(make_images())


def test_a_frozen_projector() -> None:
    model, tap = make_tapped()
    model.requires_grad_(False)
    model.encoder.requires_grad_()
    model(make_images())
    with pytest.raises(ConfigError, match="The projector is frozen"):
        tap.loss(make_images())


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_none", [True, False])
def test_observing_after_gradients_are_cleared(to_none: bool) -> None:
    model, tap = make_tapped()
    model(make_images())
    tap.loss(make_images()).backward()
    model.zero_grad(set_to_none=to_none)
    if to_none:
        with pytest.raises(ConfigError, match="after a step's last backward, and before `zero_grad`"):
            tap.observe()
    else:  # telling needs the device: at the end of the epoch
        tap.observe()
        with pytest.raises(ConfigError, match="no gradient in any of 1 observed steps"):
            tap.end_epoch()


def test_a_loss_that_is_not_differentiated() -> None:
    model, tap = make_tapped()
    for _ in range(2):
        model(make_images()).square().mean().backward()
        tap.observe()
    with pytest.raises(ConfigError, match=r"no gradient in any of 2 observed steps.*Add `loss` of the tap"):
        tap.end_epoch()
    step(model, tap, make_images())
    tap.end_epoch()


# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda images: 255 * images,
        lambda images: (images - 0.45) / 0.225,
        lambda images: images * float("nan"),
    ],
)
def test_every_batch_must_be_in_the_unit_range(change) -> None:
    model, tap = make_tapped()
    model(make_images())
    tap.loss(make_images())
    images = change(make_images())
    model(images)
    with pytest.raises(ConfigError, match=r"takes images in \[0, 1\] and got values from"):
        tap.loss(images)


def test_images_of_another_batch() -> None:
    model, tap = make_tapped()
    images = make_images()
    for others in (torch.rand(4, 3, 64, 96), images.flip(0)):
        model(images)
        with pytest.raises(ConfigError, match="not those that the model saw last"):
            tap.loss(others)
    model(images)
    with pytest.raises(ConfigError, match="not those that the model saw last"):
        tap.loss(torch.full_like(images, 0.5).index_fill(3, torch.arange(48), 0.1))


@pytest.mark.parametrize(
    "seen_as",
    [
        lambda images: (images - torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)) / 0.2,
        lambda images: images * 255,
        lambda images: images.bfloat16().float(),
        lambda images: (images + 0.2 * torch.randn(images.shape)).clamp(0, 1),
        lambda images: 1 - images,
        lambda images: torch.nn.functional.interpolate(images, scale_factor=2.0),
    ],
    ids=["normalized", "bytes", "bfloat16", "noise", "inverted", "larger"],
)
def test_the_same_images_seen_in_another_way(seen_as) -> None:
    model, tap = make_tapped()
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 8, 12), size=(64, 96), mode="bilinear")
    model(seen_as(smooth))
    tap.loss(smooth, grid_hw=None)


def test_plain_images_say_nothing() -> None:
    model, tap = make_tapped()
    images = torch.zeros(4, 3, 64, 96)
    model(images)
    tap.loss(images)


def test_on_an_accelerator_images_are_looked_at_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading from such a device waits for it; what is wrong is remembered until then."""
    monkeypatch.setattr("rtdetrv4.distillation.watch._must_wait", lambda device: True)
    good, bad = torch.rand(1, 3, 8, 8), torch.full((1, 3, 8, 8), 3.0)
    watch = Watch(nn.Linear(1, 1), nn.Linear(1, 1), "layer")
    for _ in range(CHECK_EVERY + 1):
        watch.images(good, [], None)
    watch.images(bad, [], None)
    for _ in range(CHECK_EVERY - 2):
        watch.images(good, [], None)
    with pytest.raises(ConfigError, match=r"got values from .* to 3\."):
        watch.images(good, [], None)
    watch.images(bad, [], None)
    with pytest.raises(ConfigError, match=r"got values from .* to 3\."):
        watch.end_epoch(5.0)
    watch.end_epoch(5.0)
