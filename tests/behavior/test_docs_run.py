"""The Python blocks of the documentation and the examples run, with the smallest model in place of the named one.

Its trained weights by name are random.
"""

from __future__ import annotations

import inspect
import re
import runpy
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import pytest

import rtdetrv4
import rtdetrv4.export
from cameras import write_video
from rtdetrv4.assembly import create_model
from rtdetrv4.assembly.start import start_from_file
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.weights import read_checkpoint, read_metadata, save_weights

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

PAGES = ("README.md", "docs/index.md", "docs/quickstart.md", "docs/guides/doctor.md", "docs/guides/training.md")
PAGES_AFTER_TRAINING = tuple(
    f"docs/guides/{name}.md" for name in ("predict", "evaluate", "deploy", "deploy/places", "report")
)


class Small(rtdetrv4.Detector):
    """The `test` model, trained for an epoch without a teacher, whatever was asked for."""

    def __init__(self, model: Any = None, weights: Any = None, **given: Any) -> None:
        super().__init__(None if model is None else "test", weights, **given)

    def train(self, data: Any = None, **given: Any) -> Any:
        inspect.signature(rtdetrv4.Detector.train).bind(self, data, **given)
        given |= {"epochs": 1, "batch": 4, "workers": 0, "teacher": None}
        return super().train(data, **given)


@pytest.fixture
def _workplace(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the documentation takes to be there; an export is a copy, for tracing takes longer than all the rest."""

    def copy(model: Any, paths: dict[str, Path], **given: Any) -> None:
        inspect.signature(export_model).bind(model, paths, **given)
        for path in paths.values():
            shutil.copy(trained / "weights.onnx", path)

    export_model = rtdetrv4.export.export_model
    monkeypatch.setattr("rtdetrv4.export.export_model", copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rtdetrv4, "Detector", Small, raising=False)
    save_weights(create_model("test").state_dict(), Path("coco.safetensors"), {"model": "test"})
    start = start_from_file(read_metadata("coco.safetensors"))
    start = replace(start, weights=read_checkpoint("coco.safetensors"))
    monkeypatch.setattr("rtdetrv4.assembly.start.has_trained_weights", lambda _: True)
    monkeypatch.setattr("rtdetrv4.assembly.start.trained_start", lambda *_: start)
    write_shapes(Path("datasets/mine"), num_train=4, num_val=2, image_size=64, seed=0)
    Path("photos").mkdir()
    for index, picture in enumerate(sorted(Path("datasets/mine/valid").glob("*.jpg"))):
        cv2.imwrite(f"photos/{index}.jpg", cv2.imread(str(picture)))
    write_video(Path("clip.mp4"), [0, 100, 200])
    Path("photo.jpg").write_bytes(Path("photos/0.jpg").read_bytes())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with weights and the model exported from them."""
    folder = tmp_path_factory.mktemp("trained")
    write_shapes(folder / "shapes", num_train=4, num_val=2, image_size=64, seed=0)
    detector = Small("test")
    detector.train(folder / "shapes", out=folder / "run")
    detector.export("onnx")
    return folder / "run"


@pytest.mark.usefixtures("_workplace")
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_one_after_the_other(page: str) -> None:
    run_blocks(page)


@pytest.mark.usefixtures("_workplace")
@pytest.mark.parametrize("page", PAGES_AFTER_TRAINING)
def test_blocks_run_after_training(page: str, trained: Path) -> None:
    shutil.copytree(trained, "runs/mine")
    run_blocks(page)


def run_blocks(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        if "track=" in block and find_spec("trackers") is None:  # which is not in [dev]
            continue
        exec(compile(block, page, "exec"), names)


@pytest.mark.usefixtures("_workplace")
def test_examples_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    weights = "runs/mine/weights.safetensors"
    for script, arguments in (
        ("train.py", ["datasets/mine"]),
        ("predict.py", [weights, "photos"]),
        ("export_onnx.py", [weights, "photo.jpg"]),
    ):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert "weights in runs/mine/weights.safetensors" in capsys.readouterr().out
    assert len(list(Path("detected").glob("*.jpg"))) == 2
