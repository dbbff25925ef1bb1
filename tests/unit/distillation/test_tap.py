from __future__ import annotations

import copy
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tap_ranks
from rtdetrv4.distillation import (
    DistillationStudent,
    Injector,
    Modulation,
    Tap,
    Teacher,
    alignment_loss,
    tokens_of_stride,
)
from rtdetrv4.errors import ConfigError
from rtdetrv4.types import Targets
from small_training import ROUNDING, assert_same, make_detector
from small_training import make_teacher as make_patches
from tap_ranks import Detector, make_images, make_tapped, make_teacher, step


class Returns(nn.Module):
    """A layer that computes F5, and says it in another way."""

    def __init__(self, layer: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = layer
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form(self.layer(images))


class Head(nn.Module):
    """Ignores what it gets: these tests look at the loss of the tap alone."""

    def forward(self, features: Any) -> Any:
        return features


def tapped(form: Callable[[Tensor], Any], **options: Any) -> tuple[nn.Module, Tap]:
    """The weights of `make_tapped` at the same seed, with a layer that returns F5 in some form."""
    torch.manual_seed(0)
    model = Detector()
    model.encoder = Returns(model.encoder, form)  # type: ignore[assignment]
    model.head = Head()  # type: ignore[assignment]
    return model, Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4, **options)


def fixed(teacher_map: Tensor) -> Teacher:
    """Sees the same in every image."""
    return Teacher(lambda images: teacher_map.expand(len(images), -1, -1, -1), name="fixed", dim=2, stride=32)


def set_gradients(model: nn.Module, sums: dict[str, float]) -> None:
    """Gradients whose absolute values sum to these numbers, module by module."""
    for name, total in sums.items():
        parameters = list(model.get_submodule(name).parameters())
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, -total / len(parameters) / parameter.numel())


def tokens(f5: Tensor) -> Tensor:
    return f5.flatten(2).transpose(1, 2)


def test_loss_by_hand() -> None:
    model = nn.Sequential(OrderedDict(f5=nn.Conv2d(3, 2, 32, stride=32)))
    nn.init.zeros_(model.f5.weight)
    model.f5.bias.data = torch.tensor([1.0, 0.0])
    teacher_map = torch.tensor([[[[2.0, 0.0, -1.0]], [[0.0, 3.0, 0.0]]]])  # along F5, across it, against it
    tap = Tap(model, "f5", fixed(teacher_map), Modulation(7.0), dim=2)
    nn.init.eye_(tap.injector.projector.weight)
    nn.init.zeros_(tap.injector.projector.bias)
    images = torch.rand(2, 3, 32, 96)
    model(images)
    assert tap.loss(images).item() == pytest.approx(7 * (0 + 1 + 2) / 3)


def test_loss_is_lambda_times_the_alignment_of_the_layers_output() -> None:
    model, tap = make_tapped()
    images = make_images()
    model(images)
    expected = alignment_loss(tap.injector(model.encoder(images)), make_teacher()(images, (2, 3)))
    model(images)
    torch.testing.assert_close(tap.loss(images), 5 * expected)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (lambda f5: (torch.rand(4, 8, 6, 6), f5), {}),
        (lambda f5: OrderedDict(states=(f5,), logits=torch.rand(4, 7)), {}),
        (lambda f5: [f5, f5 - 1], {"select": lambda output, image_hw: output[0]}),
        (tokens, {}),
        (lambda f5: (tokens(f5), None), {}),
        (lambda f5: tokens(f5).transpose(0, 1), {"batch_first": False}),
        (
            lambda f5: torch.cat((torch.ones(4, 1, 4), tokens(f5)), dim=1),
            {"select": lambda output, image_hw: output[:, 1:]},
        ),
    ],
    ids=["tuple", "mapping", "selected", "tokens", "tokens in a tuple", "batch second", "class token"],
)
def test_f5_in_any_form_is_the_same_map(form: Callable[[Tensor], Any], options: dict[str, Any]) -> None:
    losses = []
    for chosen, given in ((lambda f5: f5, {}), (form, options)):
        model, tap = tapped(chosen, **given)
        model(make_images())
        losses.append(tap.loss(make_images()))
    torch.testing.assert_close(losses[1], losses[0])


def test_tokens_on_a_grid_that_is_told() -> None:
    """Where cells are not square, the grid cannot be inferred."""
    model, tap = tapped(lambda f5: tokens(f5[..., :2]))
    images = make_images()
    model(images)
    with pytest.raises(ConfigError, match=r'Layer "encoder" returns 4 tokens, which do not fill images of 64×96'):
        tap.loss(images)
    model(images)
    with pytest.raises(ConfigError, match=r"do not fill a grid of 3×2"):
        tap.loss(images, grid_hw=(3, 2))
    model(images)
    told = tap.loss(images, grid_hw=(2, 2))
    expected = alignment_loss(tap.injector(model.encoder.layer(images)[..., :2]), make_teacher()(images, (2, 2)))
    torch.testing.assert_close(told, 5 * expected)


def test_gradients_are_those_of_the_distillation_student() -> None:
    """Our own detector, tapped, against the module that our trainer trains."""
    images = torch.rand(2, 3, 64, 64)
    targets = Targets.of([(torch.tensor([0, 2]), torch.rand(2, 4)), (torch.tensor([1]), torch.rand(1, 4))])
    teacher = make_patches()
    student = DistillationStudent(make_detector(), Injector(32, teacher.dim)).train()
    model = copy.deepcopy(student.detector)
    ours = Modulation(5.0)
    tap = Tap(model, "hybrid_encoder.aifi", teacher, Modulation(5.0), dim=32)
    tap.injector.load_state_dict(student.injector.state_dict())

    torch.manual_seed(1)
    output, projected = student(images, targets)
    (output.logits.square().mean() + 5.0 * alignment_loss(projected, teacher(images, (2, 2)))).backward()
    ours.observe(student.aifi, student)
    torch.manual_seed(1)
    output = model(images, targets)
    (output.logits.square().mean() + tap.loss(images)).backward()
    tap.observe()

    own, other = ours.end_epoch(refinement=False), tap.end_epoch()
    assert other[:2] == pytest.approx(own[:2], rel=1e-4)
    assert other[2:] == own[2:]
    expected = {name: p.grad for name, p in student.detector.named_parameters()}
    expected |= {f"tap.injector.{name}": p.grad for name, p in student.injector.named_parameters()}
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found["hybrid_encoder.aifi.linear1.weight"].abs().sum() > 0
    assert_same(found, expected, rounding=ROUNDING)


def test_lambda_adapts_to_the_layers_share_of_the_gradient() -> None:
    model, tap = make_tapped()  # λ = 5, wanted 2.5 to 3.5 %
    for share in (1, 3):
        set_gradients(model, {"encoder": share, "head": 90 - share, "tap.injector": 10})
        tap.observe()
    report = tap.end_epoch()
    assert report.share == pytest.approx(2, rel=1e-4)
    assert report.weight == pytest.approx(5 * (3.5 / 96.5) / (2 / 98), rel=1e-4)
    images = make_images()
    model(images)
    alignment = alignment_loss(tap.injector(model.encoder(images)), make_teacher()(images, (2, 3)))
    model(images)
    torch.testing.assert_close(tap.loss(images), report.weight * alignment)
    set_gradients(model, {"encoder": 3, "head": 87, "tap.injector": 10})
    tap.observe()
    assert tap.end_epoch(refinement=True)[:3:2] == (10.0, "refinement")
    assert tap.modulation.weight == 10.0


def test_accumulated_gradients_are_observed_once() -> None:
    model, tap = make_tapped()
    twice = copy.deepcopy(model)
    other = twice.tap
    images = make_images()
    step(model, tap, images)
    for half in images.chunk(2):
        ((twice(half).square().mean() + other.loss(half)) / 2).backward()
    other.observe()
    for (name, one), two in zip(model.named_parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    assert tap.end_epoch().share == pytest.approx(other.end_epoch().share, rel=1e-4)


def test_the_optimizer_of_the_model_trains_the_projector_and_the_loss_falls() -> None:
    model, tap = make_tapped()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(20):
        model(make_images())
        loss = tap.loss(make_images())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_lambda_zero_lets_the_teacher_rest_but_gives_gradients() -> None:
    model = Detector()
    teacher = Teacher(lambda images: pytest.fail("not needed"), name="idle", dim=6, stride=32)
    tap = Tap(model, "encoder", teacher, Modulation(0.0), dim=4)
    model(make_images())
    loss = tap.loss(make_images())
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in tap.injector.parameters())


def test_computes_in_the_format_of_the_forward_pass() -> None:
    formats = []

    def network(images: Tensor) -> Tensor:
        formats.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return nn.functional.avg_pool2d(images, 32)

    model = Detector()
    tap = Tap(model, "encoder", Teacher(network, name="means", dim=3, stride=32), Modulation(5.0), dim=4)
    images = make_images()
    model(images)
    exact = tap.loss(images)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    rough = tap.loss(images)
    assert formats == [False, torch.bfloat16]
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    assert rough.item() != exact.item()


def test_add_to_loss() -> None:
    class Named(Detector):
        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor | None]:
            logits = super().forward(pixel_values)
            return {"loss": None if labels is None else logits.square().mean(), "logits": logits}

    model = Named()
    images = make_images()
    plain = model(images, images)["loss"]
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    model(images)
    distillation = tap.loss(images)
    assert tap.add_to_loss() is tap
    for given in (model(images, images), model(labels=images, pixel_values=images)):
        torch.testing.assert_close(given["loss"], plain + distillation)
    assert model(images)["loss"] is None
    with torch.no_grad():
        torch.testing.assert_close(model(images, images)["loss"], plain)
    tap.close()
    torch.testing.assert_close(model(images, images)["loss"], plain)
    unnamed, tap = make_tapped()
    tap.add_to_loss("images")
    with pytest.raises(ConfigError, match="output is a Tensor, which has no `loss` by name"):
        unnamed(images)


def test_validation_keeps_nothing() -> None:
    model, tap = make_tapped()
    with torch.no_grad():
        model(make_images())
    with pytest.raises(ConfigError, match=r'Layer "encoder" has not run since the last loss'):
        tap.loss(make_images())


def test_state_is_in_the_models_and_survives_in_the_middle_of_an_epoch(tmp_path) -> None:
    model, tap = make_tapped()
    step(model, tap, make_images())
    tap.end_epoch()
    step(model, tap, make_images())
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    resumed, other = make_tapped()
    assert not torch.equal(other.injector.projector.weight, tap.injector.projector.weight)
    resumed.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other.injector.projector.weight, tap.injector.projector.weight)
    assert other.modulation.weight == tap.modulation.weight != 5.0
    assert other.end_epoch() == tap.end_epoch()


def test_close_gives_the_model_back() -> None:
    model = Detector()
    names, images = list(model.state_dict()), make_images()
    with Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4) as tap:
        assert model.tap is tap
        assert list(model.state_dict()) == [
            *names,
            *(f"tap.{name}" for name in ("_extra_state", "injector.projector.weight", "injector.projector.bias")),
        ]
    assert list(model.state_dict()) == names
    model(images)
    with pytest.raises(ConfigError, match="has not run"):
        tap.loss(images)
    Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)


def test_a_copy_of_the_model_has_a_tap_of_its_own_and_the_same_teacher() -> None:
    model, tap = make_tapped()
    step(model, tap, make_images())
    average = copy.deepcopy(model)
    assert average.tap is not tap
    assert average.tap._beside.teacher is tap._beside.teacher
    assert average.tap._beside.layer is average.encoder
    assert average.tap.modulation is not tap.modulation
    average(make_images())
    average.tap.loss(make_images()).backward()
    with pytest.raises(ConfigError, match="has not run"):
        tap.loss(make_images())


def test_a_layer_that_does_not_fit() -> None:
    model, teacher, modulation = Detector(), make_teacher(), Modulation(5.0)
    with pytest.raises(ConfigError, match=r'no layer "encodr"\. Did you mean "encoder"\?'):
        Tap(model, "encodr", teacher, modulation, dim=4)
    with pytest.raises(ConfigError, match=r'no layer ""'):
        Tap(model, "", teacher, modulation, dim=4)
    model.head = nn.Sequential(nn.Identity())
    with pytest.raises(ConfigError, match=r'Layer "head\.0" \(Identity\) has no parameters'):
        Tap(model, "head.0", teacher, modulation, dim=4)
    Tap(model, "encoder", teacher, modulation, dim=4)
    with pytest.raises(ConfigError, match=r"Close an earlier tap with model\.tap\.close\(\)"):
        Tap(model, "encoder", teacher, modulation, dim=4)


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        (lambda f5: f5[:, :3], {}, r"returns 4×3×2×3, of which 0 can be F5: B×4×h×w or tokens with 4 channels last"),
        (lambda f5: (f5, f5), {}, r"returns 4×4×2×3, 4×4×2×3, of which 2 can be F5.*Choose one with `select`"),
        (lambda f5: None, {}, r"returns no tensor, of which 0"),
        (lambda f5: f5[:2], {}, r"returns 2×4×2×3 for 4 images"),
        (lambda f5: tokens(f5).transpose(0, 1), {}, r"returns 6×4×4 for 4 images.*N×B×C with batch_first=False"),
        (lambda f5: tokens(f5)[:, 1:], {}, r"returns 5 tokens, which do not fill images of 64×96 in squares"),
    ],
)
def test_outputs_that_are_no_f5(form: Callable[[Tensor], Any], options: dict[str, Any], message: str) -> None:
    model, tap = tapped(form, **options)
    model(make_images())
    with pytest.raises(ConfigError, match=message):
        tap.loss(make_images())


def test_an_epoch_without_a_look_at_gradients() -> None:
    model, tap = make_tapped()
    with pytest.raises(ConfigError, match="Call `observe` after each step's last backward"):
        tap.end_epoch()
    step(model, tap, make_images())
    tap.end_epoch()
    with pytest.raises(ConfigError, match="No gradient was observed"):
        tap.end_epoch()
    model = Detector()
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    assert tap.end_epoch()[:3] == (5.0, 0.0, "fixed")


@pytest.mark.slow
def test_two_ranks_are_one_with_twice_the_batch(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    mp.spawn(tap_ranks.run, (tmp_path, port), nprocs=2)
    for kind, (spare, nested) in tap_ranks.KINDS.items():
        first, second = (torch.load(tmp_path / f"{kind}{rank}.pt", weights_only=True) for rank in range(2))
        model, tap = make_tapped(spare, nested)
        model.load_state_dict(first["weights"])
        step(model, tap, make_images())
        for name, gradient in first["gradients"].items():
            assert torch.equal(gradient, second["gradients"][name]), name
            torch.testing.assert_close(gradient, model.get_parameter(name).grad, msg=name)
        assert first["report"] == second["report"]
        assert first["report"] == pytest.approx(tap.end_epoch()[:2], rel=1e-4)


# ---- padding --------------------------------------------------------------------------------------------------------


def padded_batch() -> tuple[Tensor, Tensor]:
    """Two images, one of which fills the left third only, and their mask."""
    images = make_images()[:2]
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    images[1, :, :, 32:] = 0
    mask[1, :, 32:] = 0
    return images, mask


def test_padding_does_not_count() -> None:
    model, tap = make_tapped()
    images, mask = padded_batch()
    features, wanted = tap.injector(model.encoder(images)), make_teacher()(images, (2, 3))
    distance = 1 - nn.functional.cosine_similarity(features, wanted, dim=1)
    expected = (distance[0].sum() + distance[1, :, :1].sum()) / (6 + 2)
    for given in (mask, mask.bool(), mask[:, None].float()):
        model(images)
        torch.testing.assert_close(tap.loss(images, mask=given), 5 * expected)
    model(images)
    torch.testing.assert_close(tap.loss(images), 5 * distance.mean())  # nothing says that this is padding


def test_no_gradient_comes_from_padding() -> None:
    model, tap = tapped(lambda f5: f5)
    images, mask = padded_batch()
    f5 = model(images)
    f5.retain_grad()
    tap.loss(images, mask=mask).backward()
    assert f5.grad is not None
    assert f5.grad[1, :, :, 0].any()
    assert not f5.grad[1, :, :, 1:].any()
    assert f5.grad[0].all(dim=0).any()


class Padded(Detector):
    """As transformers' detectors take padded batches."""

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = super().forward(pixel_values)
        return {"loss": None if labels is None else logits.square().mean(), "logits": logits}


def test_the_mask_that_the_model_was_called_with_is_taken() -> None:
    images, mask = padded_batch()
    model = Padded()
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    model(images)
    expected = tap.loss(images, mask=mask)
    for call in (lambda: model(images, mask), lambda: model(pixel_mask=mask, pixel_values=images)):
        call()
        torch.testing.assert_close(tap.loss(images), expected)
    plain = model(images, mask, images)["loss"]
    tap.add_to_loss()
    torch.testing.assert_close(model(images, mask, images)["loss"], plain + expected)
    torch.testing.assert_close(model(labels=images, pixel_mask=mask, pixel_values=images)["loss"], plain + expected)


def test_a_mask_by_another_name() -> None:
    class Other(Detector):
        def forward(self, samples: Tensor, *, visible: Tensor | None = None) -> Any:
            return {"loss": super().forward(samples).square().mean()}

    images, mask = padded_batch()
    model = Other()
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    plain = model(images, visible=mask)["loss"]
    distillation = tap.loss(images, mask=mask)
    with pytest.raises(ConfigError, match=r'has no argument "visble"\. Did you mean "visible"\?'):
        tap.add_to_loss("samples", mask="visble")
    with pytest.raises(ConfigError, match=r'has no argument "pixel_values"\. It has samples, visible'):
        tap.add_to_loss()
    tap.add_to_loss("samples", mask="visible")
    torch.testing.assert_close(model(images, visible=mask)["loss"], plain + distillation)
    with pytest.raises(ConfigError, match='called without "visible", with samples'):
        model(images)


def test_masks_that_do_not_fit() -> None:
    model, tap = make_tapped()
    images, mask = padded_batch()
    model(images)
    with pytest.raises(ConfigError, match=r"mask: got 2×32×96 for images of 2×3×64×96, expected B×H×W"):
        tap.loss(images, mask=mask[:, :32])
    model(images)
    with pytest.raises(ConfigError, match=r"an image has no position that counts.*give ~mask"):
        tap.loss(images, mask=~mask.bool())


# ---- inputs of transformers' processors -----------------------------------------------------------------------------


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def test_normalized_images() -> None:
    images = make_images()
    normalized = (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    model = Padded()
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    model(normalized)
    expected = tap.loss(images)
    model(normalized)
    torch.testing.assert_close(tap.loss(normalized, mean=MEAN, std=STD), expected)
    plain = model(normalized, labels=images)["loss"]
    tap.add_to_loss(mean=list(MEAN), std=list(STD))
    torch.testing.assert_close(model(normalized, labels=images)["loss"], plain + expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": MEAN}, r"std: got None, expected three numbers.*such as \(0\.229"),
        ({"std": STD}, "mean: got None"),
        ({"mean": (123.675, 116.28, 103.53), "std": STD}, r"Divide those of images in 0…255 by 255"),
        ({"mean": MEAN, "std": (58.4, 57.1, 57.4)}, r"std: got .*Divide those of images in 0…255 by 255"),
        ({"mean": MEAN, "std": (0.0, 0.1, 0.1)}, "std: got"),
        ({"mean": (0.5,), "std": STD}, "mean: got"),
        ({"mean": "imagenet", "std": STD}, "mean: got imagenet"),
    ],
)
def test_means_and_deviations_that_are_none(given: dict[str, Any], message: str) -> None:
    model = Padded()
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    with pytest.raises(ConfigError, match=message):
        tap.add_to_loss(**given)
    model(make_images())
    with pytest.raises(ConfigError, match=message):
        tap.loss(make_images(), **given)


@pytest.mark.parametrize("grid_hw", [(2, 2), lambda image_hw: (image_hw[0] // 32, 2)])
def test_a_told_grid_in_add_to_loss(grid_hw: Any) -> None:
    model = Padded()
    model.encoder = Returns(model.encoder, lambda f5: tokens(f5[..., :2]))  # type: ignore[assignment]
    model.head = Head()  # type: ignore[assignment]
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    images = make_images()
    plain = model(images, labels=images)["loss"]
    expected = tap.loss(images, grid_hw=(2, 2))
    tap.add_to_loss(grid_hw=grid_hw)
    torch.testing.assert_close(model(images, labels=images)["loss"], plain + expected)


def test_images_under_another_name() -> None:
    class Anything(Detector):
        def forward(self, **batch: Tensor) -> Any:
            return {"loss": super().forward(batch["pictures"]).square().mean()}

    model = Anything()
    images = make_images()
    plain = model(pictures=images)["loss"]
    Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4).add_to_loss()
    with pytest.raises(ConfigError, match=r'called without "pixel_values", with pictures.*add_to_loss\(images=…'):
        model(pictures=images)
    model.tap.close()
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    model(pictures=images)
    expected = tap.loss(images)
    tap.add_to_loss("pictures")
    torch.testing.assert_close(model(pictures=images)["loss"], plain + expected)


# ---- select and grids -----------------------------------------------------------------------------------------------


def test_select_sees_the_size_of_the_images() -> None:
    sizes = []

    def select(output: Tensor, image_hw: tuple[int, int]) -> Tensor:
        sizes.append(image_hw)
        return output

    model, tap = tapped(lambda f5: f5, select=select)
    model(make_images())
    tap.loss(make_images())
    assert sizes == [(64, 96)]
    with pytest.raises(ConfigError, match=r"select: expected a function of the layer's output and the images'"):
        tapped(lambda f5: f5, select=lambda output: output)


def test_tokens_of_several_maps() -> None:
    """As in Deformable DETR: strides 16, 32 and 64, of which the last covers more than the image."""

    def levels(f5: Tensor) -> Tensor:
        return torch.cat((torch.rand(4, 4 * 6, 4), tokens(f5), torch.rand(4, 1 * 2, 4)), dim=1)

    model, tap = tapped(lambda f5: f5)
    model(make_images())
    expected = tap.loss(make_images())
    model, tap = tapped(levels, select=tokens_of_stride(32, (16, 32, 64)))
    model(make_images())
    torch.testing.assert_close(tap.loss(make_images()), expected)
    model, tap = tapped(levels, select=tokens_of_stride(32, (8, 16, 32)))
    model(make_images())
    with pytest.raises(ConfigError, match=r"returns 32 tokens for images of 64×96; .* 96 \+ 24 \+ 6"):
        tap.loss(make_images())
    with pytest.raises(ConfigError, match="stride: got 64, expected one of strides"):
        tokens_of_stride(64, (8, 16, 32))


@pytest.mark.parametrize("as_tokens", [True, False])
def test_cells_that_reach_over_the_border(as_tokens: bool) -> None:
    """Of 70×100 pixels a convolution with padding makes 3×4 cells of stride 32; the teacher sees whole cells."""
    images = torch.rand(2, 3, 70, 100)
    whole = nn.functional.pad(images, (0, 28, 0, 26), mode="replicate")
    model, tap = tapped(tokens if as_tokens else lambda f5: f5)
    encoder = model.encoder.layer
    model.encoder.layer = nn.Sequential(nn.ReplicationPad2d((0, 28, 0, 26)), encoder)
    model(images)
    expected = alignment_loss(tap.injector(encoder(whole)), make_teacher()(whole, (3, 4)))
    torch.testing.assert_close(tap.loss(images), 5 * expected)


# ---- checkpointed activations ---------------------------------------------------------------------------------------


class Checkpointed(Detector):
    """Repeats its encoder in the backward pass."""

    reentrant = False

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.encoder, images, use_reentrant=self.reentrant))


def test_checkpointed_activations() -> None:
    gradients = []
    for kind in (Detector, Checkpointed):
        torch.manual_seed(0)
        model = kind()
        tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
        step(model, tap, make_images())
        gradients.append([parameter.grad for parameter in model.parameters()])
        with pytest.raises(ConfigError, match="has not run since the last loss"):  # not what backward has repeated
            tap.loss(make_images())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_reentrant_checkpoints_are_refused() -> None:
    """They run the layer without gradients, and again, with gradients, after the loss."""
    model = Checkpointed()
    model.reentrant = True
    tap = Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4)
    for _ in range(2):
        images = make_images().requires_grad_()
        output = model(images)
        with pytest.raises(ConfigError, match="use_reentrant=False"):
            tap.loss(images)
        output.square().mean().backward()

    class Named(Checkpointed):
        reentrant = True

        def forward(self, pixel_values: Tensor) -> Any:
            return {"loss": super().forward(pixel_values).square().mean()}

    model = Named()
    Tap(model, "encoder", make_teacher(), Modulation(5.0), dim=4).add_to_loss()
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        model(make_images().requires_grad_())


def test_a_compiled_model() -> None:
    model, tap = make_tapped()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="eager")
    step(model, tap, make_images())
    step(compiled, twin.tap, make_images())
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


# ---- values to log, and things of another kind ----------------------------------------------------------------------


def test_values_to_log() -> None:
    model, tap = make_tapped()
    assert tap.values() == {"lambda": 5.0}
    model(make_images())
    loss = tap.loss(make_images())
    assert tap.values() == {"lambda": 5.0, "distill": pytest.approx(loss.item() / 5)}
    tap.modulation.weight = 0.0
    model(make_images())
    tap.loss(make_images())
    assert tap.values() == {"lambda": 0.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": "dinov2-b"}, r"teacher: got 'dinov2-b', expected a Teacher, as load_teacher\(NAME\)"),
        ({"teacher": nn.Conv2d(3, 4, 32)}, r"teacher: got a Conv2d, expected a Teacher, as wrap_teacher\(NETWORK\)"),
        ({"modulation": 5.0}, r"modulation: got 5\.0, expected .* Modulation\(5\.0\)"),
        ({"modulation": "auto"}, r"modulation: got 'auto'"),
        ({"modulation": nn.Linear(1, 1)}, "modulation: got a Linear"),
        ({"model": "facebook/detr-resnet-50"}, r"model: got 'facebook/detr-resnet-50', expected a torch\.nn\.Module"),
    ],
)
def test_parts_of_another_kind(given: dict[str, Any], message: str) -> None:
    parts = {"model": Detector(), "layer": "encoder", "teacher": make_teacher(), "modulation": Modulation(5.0)}
    with pytest.raises(ConfigError, match=message):
        Tap(**{**parts, **given}, dim=4)
