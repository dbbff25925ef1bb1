"""A user's mistake on the command line: one clear line on stderr, exit code 2, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtdetrv4.cli import main
from rtdetrv4.data.synthetic import write_shapes


def fails(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    """The one line that a command line ends with."""
    code = main([str(arg) for arg in args])
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(err) == 1, err
    assert err[0].startswith("error: ")
    return err[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "data", num_train=4, num_val=2, image_size=64)


def train(data: Path, *more: str) -> list[str]:
    return ["train", "--data", str(data), "--model", "test", "--out", str(data.parent / "run"), *more]


def test_missing_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "does not exist" in fails(capsys, *train(tmp_path / "nothing"))


def test_broken_json(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    file = data / "train" / "_annotations.coco.json"
    file.write_text(file.read_text()[:-20])
    assert "_annotations.coco.json" in fails(capsys, *train(data))


def test_unknown_key(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert 'Did you mean "optimizer.lr"' in fails(capsys, *train(data, "--set", "optimizer.lrr=1"))


def test_unknown_model(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert "rtdetrv4-s" in fails(capsys, "train", "--data", data, "--model", "rtdetr4-s")


def test_unknown_teacher(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    line = fails(capsys, *train(data, "--teacher", "vit_base_patch16_dinov4", "--set", "distillation.mode=fixed"))
    assert "vit_base_patch16_dinov3" in line


@pytest.mark.parametrize(
    ("command", "teacher", "message"),
    [
        ("train", "dinov4-b", "dinov4-b"),
        ("pretrain", "dinov4-b", "dinov4-b"),
        ("pretrain", "nowhere.pth", "There is no file nowhere.pth"),
        ("pretrain", "none", "needs a teacher"),
    ],
)
def test_a_wrong_teacher_is_told_before_data_is_read(
    command: str, teacher: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, command, "--data", "nowhere", "--model", "test", "--teacher", teacher)
    assert message in line
    assert "nowhere does not exist" not in line


def test_annotation_without_category(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    file = data / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 99
    file.write_text(json.dumps(content))
    assert "99" in fails(capsys, *train(data))


def test_missing_images(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    for image in sorted((data / "train").glob("*.jpg"))[:2]:  # a single one is left out
        image.unlink()
    assert "shapes_" in fails(capsys, *train(data))


def test_unreadable_image_to_predict(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    assert main(train(data, "--epochs", "1")) == 0
    capsys.readouterr()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    weights = data.parent / "run" / "weights.safetensors"
    out = ("--out", str(tmp_path / "predictions"))
    assert "broken.jpg" in fails(capsys, "predict", broken, "--model", weights, *out)
    assert "nowhere.jpg" in fails(capsys, "predict", tmp_path / "nowhere.jpg", "--model", weights, *out)


def test_weights_that_are_none(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    fake = tmp_path / "fake.safetensors"
    fake.write_bytes(b"<html>not found</html>")
    assert "fake.safetensors" in fails(capsys, "val", "--data", data, "--model", fake)
    assert "There is no file" in fails(capsys, "val", "--data", data, "--model", tmp_path / "none.safetensors")
