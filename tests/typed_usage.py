"""What type checkers know of the public API. `make check` has pyright read this; nothing runs it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from typing_extensions import assert_type

from rtdetrv4 import Detections, Detector, ExportedDetector, create_model
from rtdetrv4.detector import PretrainResult, TrainResult
from rtdetrv4.evaluation import Metrics
from rtdetrv4.models import DetectionModel
from rtdetrv4.runtime import ExportMetadata

detector = Detector("rtdetrv4-s")
assert_type(detector, Detector)
assert_type(detector.names, tuple[str, ...])
assert_type(detector.model, DetectionModel)
assert_type(detector.train("datasets/mine", epochs=2), TrainResult)
assert_type(detector.pretrain("photos"), PretrainResult)
assert_type(detector.val("datasets/mine"), Metrics)
assert_type(detector.predict("photo.jpg"), list[Detections])
assert_type(detector.predict("clip.mp4", stream=True, track=True), Iterator[Detections])
assert_type(detector.export("triton"), Path)
assert_type(detector.export(["onnx", "openvino"]), Path | list[Path])
assert_type(create_model("rtdetrv4-n", 3), DetectionModel)

exported = ExportedDetector("weights.onnx")
assert_type(exported.metadata, ExportMetadata)
found = exported.predict("photo.jpg", conf={"cat": 0.5})[0]
assert_type(found.xyxy, np.ndarray)
assert_type(found.tracker_id, np.ndarray | None)
assert_type([(box, score, index, name) for box, score, index, name in found], list[tuple[np.ndarray, float, int, str]])

# A mistake is one that is seen, too.
detector.predict("photo.jpg", confidence=0.5)  # pyright: ignore[reportCallIssue]
detector.export("onx", precision="fp8")  # pyright: ignore[reportCallIssue, reportArgumentType]
