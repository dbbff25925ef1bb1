"""The catalog of teachers against timm, and every one of its networks at work."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

from rtdetrv4.cli import main
from rtdetrv4.distillation import PIP_TEACHER, TEACHERS, Injector, TeacherFacts, alignment_loss, load_teacher
from rtdetrv4.distillation.teacher_catalog import BY_NAME, DEFAULT_TEACHER, timm_name
from rtdetrv4.errors import ConfigError

FULL = ("dinov3-s", "dinov2-s", "eva02-s", PIP_TEACHER)
"""Run at their real depth; the others with two blocks, or one to each stage, at their real width."""


def reduced(name: str) -> dict[str, Any]:
    """What makes a network of timm shallow, and leaves everything else as it is."""
    if name.startswith("convnext"):
        return {"depths": (1, 1, 1, 1)}
    if name.startswith("sam2_hiera"):
        return {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)}
    if name.startswith("samvit"):
        return {"depth": 2, "global_attn_indexes": (1,)}
    if name.startswith(("vit", "eva", "naflexvit")):
        return {"depth": 2}
    return {}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **reduced(name), **options))


def named(facts: TeacherFacts) -> str:
    return facts.name


def test_names_are_unique_and_the_default_is_among_them() -> None:
    assert len(BY_NAME) == len(TEACHERS) == len({facts.timm_name for facts in TEACHERS})
    assert DEFAULT_TEACHER in {facts.timm_name for facts in TEACHERS}
    assert timm_name("dinov3-b") == DEFAULT_TEACHER
    assert timm_name("convnext_atto") == "convnext_atto"


@pytest.mark.parametrize("facts", TEACHERS, ids=named)
def test_weights_and_licenses_are_those_that_timm_names(facts: TeacherFacts) -> None:
    if not timm.is_model(facts.timm_name.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} does not have it")
    config = get_pretrained_cfg(facts.timm_name, allow_unregistered=False)
    assert config is not None
    assert config.has_weights
    assert (config.license, tuple(config.mean), tuple(config.std)) == (facts.license, facts.mean, facts.std)


@pytest.mark.parametrize("facts", TEACHERS, ids=named)
def test_sizes_are_those_of_the_networks(facts: TeacherFacts) -> None:
    if not timm.is_model(facts.timm_name.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} does not have it")
    with torch.device("meta"):  # without memory for parameters
        network = timm.create_model(facts.timm_name, pretrained=False, num_classes=0)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert facts.millions == pytest.approx(millions, abs=0.51 if millions > 10 else 0.051)


@pytest.mark.parametrize("facts", TEACHERS, ids=named)
def test_teaches_on_squares_and_rectangles(facts: TeacherFacts, request: pytest.FixtureRequest) -> None:
    """Real architectures with random weights, from images to the gradient of the injector.

    Not run: the depth of those not in `FULL`, whose blocks repeat those that are run; downloaded weights.
    """
    if not timm.is_model(facts.timm_name.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} does not have it")
    if facts.name not in FULL:
        request.getfixturevalue("shallow")
    teacher = load_teacher(facts.name, pretrained=False)
    assert teacher.name == (PIP_TEACHER if facts.name == PIP_TEACHER else facts.timm_name)
    assert (teacher.dim, teacher.stride, teacher.license) == (facts.dim, facts.stride, facts.license)
    assert tuple(teacher.mean.flatten().tolist()) == pytest.approx(facts.mean)
    assert tuple(teacher.std.flatten().tolist()) == pytest.approx(facts.std)

    torch.manual_seed(1)
    injector = Injector(4, teacher.dim)
    for height, width in ((192, 192), (192, 320)):
        grid = (height // 32, width // 32)
        images = torch.rand(1, 3, height, width)
        features = teacher(images, grid)
        assert features.shape == (1, facts.dim, *grid)
        assert features.isfinite().all()

        f5 = torch.rand(1, 4, *grid, requires_grad=True)
        loss = alignment_loss(injector(f5), features)
        injector.zero_grad()
        loss.backward()
        assert math.isfinite(loss.item())
        assert f5.grad is not None
        assert f5.grad.abs().sum() > 0
        assert injector.projector.weight.grad is not None
        assert injector.projector.weight.grad.abs().sum() > 0
        assert [name for name, parameter in teacher.named_parameters() if parameter.grad is not None] == []

    # What changes in one cell of a rectangle changes the features there, and less elsewhere.
    row, column = 4, 7
    images[..., 32 * row : 32 * (row + 1), 32 * column : 32 * (column + 1)] = 1 - images[..., :32, :32]
    difference = (teacher(images, grid) - features).norm(dim=1).flatten()
    found = divmod(int(difference.argmax()), grid[1])
    slack = 1 if facts.stride == 32 or facts.family == "SAM" else 0  # convolutions overlap
    assert abs(found[0] - row) <= slack
    assert abs(found[1] - column) <= slack


def test_a_mistyped_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'Did you mean "dinov3-b"\?'):
        load_teacher("dino3-b")
    with pytest.raises(ConfigError, match=r'Did you mean "siglip2-so400m"\?'):
        load_teacher("siglip2-so400")


def test_a_timm_without_the_network_is_to_be_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "is_model", lambda name: False)
    with pytest.raises(ConfigError, match=r"naflexvit_base_patch16_radio_v3.*pip install -U timm"):
        load_teacher("radio3-b")


def test_the_command_lists_every_teacher(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["teachers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for facts in TEACHERS:
        (line,) = (line for line in lines if line.split()[:1] == [facts.name] and facts.timm_name in line.split())
        assert f" {facts.dim} " in line
        assert (f"{facts.license} *" in line) != facts.is_open


def test_the_command_needs_no_torch() -> None:
    code = "import sys; from rtdetrv4.cli import main; main(['teachers']); print({'torch', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
