"""Weights of strangers: nothing in them is run, and none of them costs more than its size."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from rtdetrv4.assembly import create_model
from rtdetrv4.distillation import load_teacher
from rtdetrv4.errors import WeightsError
from rtdetrv4.training.checkpoint import load_checkpoint, save_checkpoint
from rtdetrv4.weights import read_checkpoint, read_metadata, save_weights, to_released
from small_training import make_trainer, write_images


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


def repacked(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of an archive of torch.save with members of other content, or compressed."""
    method = changes.pop("method", zipfile.ZIP_STORED)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", method) as copy:
        for name in archive.namelist():
            content = archive.read(name)
            for ending, change in changes.items():
                if name.endswith(ending):
                    content = change(content)
            copy.writestr(name, content)
    return target


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(to_released(create_model("test", 2)), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def bomb(path: Path) -> Path:
    """A small archive of many zeros; what it unpacks to is in its directory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(3):
            archive.writestr(f"w/data/{number}", bytes(32 << 20))  # gigabytes would only take longer to write
        archive.writestr("w/data.pkl", pickle.dumps({}, protocol=2))
    assert path.stat().st_size < 1_000_000
    return path


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = bomb(tmp_path / "w.pt")
    message = r"w\.pt was not loaded: it is a zip bomb: it has \S+ KB and claims to unpack to 101 MB"
    with pytest.raises(WeightsError, match=message):
        read_metadata(path)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(path)
    with pytest.raises(WeightsError, match=message):
        load_teacher("resnet18", path)


def test_an_archive_that_torch_would_misread(tmp_path: Path, weights: Path) -> None:
    path = repacked(weights, tmp_path / "small.pth", method=zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightsError, match=r"small\.pth was not loaded: it is a compressed zip archive; torch\.save"):
        read_metadata(path)  # or its tensors would be the compressed bytes
    with zipfile.ZipFile(weights, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"another")
    with pytest.raises(WeightsError, match="has a file twice"):
        read_metadata(weights)


def test_a_program_under_the_name_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out
        for name in ("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version"):
            archive.writestr(name, b"")
    with pytest.raises(WeightsError, match=r"m\.pt was not loaded: it is a TorchScript program, not a file of weights"):
        read_checkpoint(path)


def test_a_tensor_larger_than_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"a": torch.zeros(1).expand(10**6, 10**6)}}, path)
    assert path.stat().st_size < 2000
    message = r"w\.pth was not loaded: a tensor of it claims \(1000000, 1000000\), 4000000000000 bytes, .* holds 4 of"
    with pytest.raises(WeightsError, match=message):
        read_metadata(path)
    with pytest.raises(WeightsError, match=message):
        load_teacher("resnet18", path)
    torch.save({"format": 1, "a": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(path)


def test_tensors_that_are_not_plain(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(2, device="meta")}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds a tensor that is torch\.strided on meta, expected plain"):
        read_metadata(tmp_path / "w.pth")


def test_containers_without_end(tmp_path: Path) -> None:
    content: Any = torch.zeros(1)
    for _ in range(30):
        content = [content] * 10
    torch.save({"model": content}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="more than 20 containers inside each other"):
        read_metadata(tmp_path / "w.pth")


@pytest.mark.parametrize("length", [1 << 62, 1 << 40, 90_000_000])
def test_a_safetensors_header_without_end(tmp_path: Path, length: int) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b'{"a":')
    with pytest.raises(WeightsError, match=r"w\.safetensors is damaged \(.*header"):
        read_metadata(tmp_path / "w.safetensors")


def test_a_safetensors_tensor_of_terabytes(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(WeightsError, match=r"w\.safetensors is damaged \("):
        read_metadata(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([1], r"its metadata is \[1\], expected a mapping"),
        ({"model": "../../evil.yaml"}, r"model is '\.\./\.\./evil\.yaml', expected a model that"),
        ({"backbone": "hf-hub:stranger/code"}, "backbone is 'hf-hub:stranger/code', expected a network of timm's own"),
        ({"names": "ab"}, "names is 'ab', expected a list of class names"),
        ({"names": None}, "names is None, expected a list of class names"),
        ({"category_ids": ["1", "2"], "names": ["a", "b"]}, "category_ids is .* expected a list of whole numbers"),
        ({"image_size": [1 << 30, 1 << 30]}, "image_size is .* expected height and width up to 16384"),
        ({"image_size": [float("nan"), 64]}, "image_size is .* expected height and width up to 16384"),
        ({"thresholds": {"a": "1"}}, "thresholds is .* expected a number for each class"),
        ({"training_image_size": [0, 0]}, "training_image_size is .* expected height and width"),
        ({"start": "none"}, "start is 'none', expected a mapping"),
    ],
)
def test_metadata_that_claims_nonsense(tmp_path: Path, facts: Any, message: str) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in create_model("test", 2).state_dict().items()}
    safetensors.torch.save_file(tensors, path, {"format": "pt", "rtdetrv4": json.dumps(facts)})
    with pytest.raises(WeightsError, match=rf"w\.safetensors is damaged: .*{message}"):
        read_checkpoint(path)


def test_metadata_of_a_million_levels(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"rtdetrv4": "[" * 100_000})
    with pytest.raises(WeightsError, match="too many lists and objects inside each other"):
        read_checkpoint(path)


def test_a_head_of_no_classes(tmp_path: Path) -> None:
    state = create_model("test", 2).state_dict() | {"query_selection.score_head.bias": torch.zeros(())}
    save_weights(state, tmp_path / "w.safetensors", {})
    with pytest.raises(WeightsError, match=r"its head has a bias of shape \(\), expected"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_trust_runs_what_a_file_brings_along(tmp_path: Path, weights: Path) -> None:
    content = torch.load(weights, weights_only=True)
    torch.save({"model": content, "trap": Trap(tmp_path / "sprung")}, weights)
    with pytest.raises(
        WeightsError, match=r"weights\.pth was not loaded: it holds Python objects .*run any code.*--trust"
    ):
        read_checkpoint(weights)
    assert not (tmp_path / "sprung").exists()
    assert read_checkpoint(weights, trust=True).metadata.num_classes == 2
    assert (tmp_path / "sprung").exists()


def test_a_training_state_with_code(tmp_path: Path) -> None:
    torch.save({"format": 1, "trap": Trap(tmp_path / "sprung")}, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match=r"last\.pt cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [{}, {"plan": 5}])
def test_a_training_state_without_its_parts(tmp_path: Path, content: dict[str, Any]) -> None:
    save_checkpoint(content, tmp_path / "last.pt")
    trainer = make_trainer(write_images(tmp_path / "images", 1), tmp_path / "run", distil=False)
    with pytest.raises(WeightsError, match=r"last\.pt does not hold the state of this run \("):
        trainer.run(tmp_path / "last.pt")


def test_numpy_numbers_need_no_trust_but_say_what_they_are(tmp_path: Path) -> None:
    """As released checkpoints of other projects have them."""
    torch.save({"model": {}, "best": np.float64(0.5)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds Python objects \(.*numpy"):
        read_metadata(tmp_path / "w.pth")


def test_what_we_write_is_read(tmp_path: Path, weights: Path) -> None:
    assert read_metadata(weights).num_classes == 2
    shutil.copy(weights, tmp_path / "copy.pt")
    assert read_metadata(tmp_path / "copy.pt").num_classes == 2
