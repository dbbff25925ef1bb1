"""The C++ example compiles, and finds what `ExportedDetector` finds."""

from __future__ import annotations

import os
import shutil
import subprocess
from ctypes.util import find_library
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import golden
from rtdetrv4 import ExportedDetector
from rtdetrv4.runtime import Detections

from .conftest import Exported

SOURCE = Path(__file__).parents[2] / "examples/cpp/detect.cpp"
HEADERS = {
    "onnxruntime_cxx_api.h": ("/usr/local/include/onnxruntime", "/usr/include/onnxruntime"),
    "opencv2/imgcodecs.hpp": ("/usr/include/opencv4", "/usr/include"),
    "nlohmann/json.hpp": ("/usr/include",),
}
CONFIDENCE = 0.2


def missing(what: str) -> NoReturn:
    reason = f"{what} is not installed; docs/guides/deploy/cpp.md says what the C++ example needs"
    if "CI" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled example, with the ONNX Runtime that Python uses where its package has the library as a file."""
    folder = tmp_path_factory.mktemp("cpp")
    compiler = shutil.which("g++")
    if compiler is None:
        missing("g++")
    includes = []
    for header, folders in HEADERS.items():
        found = next((each for each in folders if (Path(each) / header).is_file()), None)
        if found is None:
            missing(header)
        includes += ["-I", found]
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if libraries:
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (folder / name).symlink_to(libraries[0])
    elif find_library("onnxruntime") is None:
        missing("libonnxruntime.so")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-L", str(folder), f"-Wl,-rpath,{folder}"]
    needed = ["-lopencv_imgcodecs", "-lopencv_imgproc", "-lopencv_core", "-lonnxruntime"]
    compiled = folder / "detect"
    subprocess.run([compiler, *flags, *includes, str(SOURCE), "-o", str(compiled), *needed], check=True)
    return compiled


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8")


def assert_same(printed: str, expected: Detections) -> None:
    lines = [line.split(maxsplit=5) for line in printed.splitlines()]
    assert [line[5] for line in lines] == expected.class_name
    numbers = np.array([line[:5] for line in lines], dtype=np.float32)
    np.testing.assert_allclose(numbers[:, 0], expected.confidence, atol=1e-3)
    np.testing.assert_allclose(numbers[:, 1:], expected.xyxy, atol=0.1)


def letterboxed(path: Path, target: Path) -> Path:
    """The same model, with images that keep their aspect ratio."""
    graph = onnx.load(path)
    for entry in graph.metadata_props:
        entry.value = entry.value.replace('"resize": "stretch"', '"resize": "letterbox"')
    onnx.save(graph, target)
    return target


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(
    ("height", "width", "suffix"), [(90, 150, "png"), (150, 90, "jpg"), (40, 50, "png"), (300, 50, "png")]
)
def test_finds_what_the_package_finds(
    program: Path, square: Exported, tmp_path: Path, resize: str, height: int, width: int, suffix: str
) -> None:
    path = square.path if resize == "stretch" else letterboxed(square.path, tmp_path / "animals.onnx")
    picture = tmp_path / f"picture.{suffix}"
    Image.fromarray((255 * golden.image(3, height, width)).astype(np.uint8).transpose(1, 2, 0)).save(picture)
    (expected,) = ExportedDetector(path, device="cpu").predict(picture, conf=CONFIDENCE)
    assert len(expected) > 5
    found = run(program, path, picture, CONFIDENCE)
    assert found.returncode == 0, found.stderr
    assert_same(found.stdout, expected)


def test_a_photo_is_turned_upright(program: Path, square: Exported, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pixels = (255 * golden.image(3, 90, 150)).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=turned)
    (expected,) = ExportedDetector(square.path, device="cpu").predict(tmp_path / "photo.jpg", conf=CONFIDENCE)
    assert expected.image is not None
    assert expected.image.shape == (150, 90, 3)
    assert_same(run(program, square.path, tmp_path / "photo.jpg", CONFIDENCE).stdout, expected)


def test_a_mistake_is_said(program: Path, square: Exported, tmp_path: Path) -> None:
    foreign = onnx.load(square.path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for arguments, message in (
        ([], "usage: detect MODEL.onnx PICTURE"),
        ([square.path, tmp_path / "no.png"], "cannot read"),
        ([square.path, tmp_path / "no.png", "high"], "CONFIDENCE: expected a number"),
        ([tmp_path / "foreign.onnx", tmp_path / "no.png"], "was not exported by rtdetrv4"),
        ([tmp_path / "no.onnx", tmp_path / "no.png"], "no.onnx"),
    ):
        found = run(program, *arguments)
        assert found.returncode == 1
        assert message in found.stderr
        assert found.stdout == ""
