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

import tap_ranks
from rtdetrv4.distillation import DistillationStudent, Injector, Modulation, Tap, Teacher, alignment_loss
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
        (lambda f5: [f5, f5 - 1], {"select": lambda output: output[0]}),
        (tokens, {}),
        (lambda f5: (tokens(f5), None), {}),
        (lambda f5: tokens(f5).transpose(0, 1), {"batch_first": False}),
        (
            lambda f5: torch.cat((torch.ones(4, 1, 4), tokens(f5)), dim=1),
            {"select": lambda output: output[:, 1:]},
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
    tap.add_to_loss()
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


@pytest.mark.parametrize("change", [lambda images: 255 * images, lambda images: (images - 0.45) / 0.225])
def test_images_that_are_not_in_the_unit_range(change: Callable[[Tensor], Tensor]) -> None:
    model, tap = make_tapped()
    images = change(make_images())
    model(images)
    with pytest.raises(ConfigError, match=r"takes images in \[0, 1\] and got values from"):
        tap.loss(images)


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
    for spare in (False, True):
        first, second = (torch.load(tmp_path / f"{spare}{rank}.pt", weights_only=True) for rank in range(2))
        model, tap = make_tapped(spare)
        model.load_state_dict(first["weights"])
        step(model, tap, make_images())
        for name, gradient in first["gradients"].items():
            assert torch.equal(gradient, second["gradients"][name]), name
            torch.testing.assert_close(gradient, model.get_parameter(name).grad, msg=name)
        assert first["report"] == second["report"]
        assert first["report"] == pytest.approx(tap.end_epoch()[:2], rel=1e-4)
