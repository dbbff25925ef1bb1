"""Detect and draw: python examples/predict.py runs/mine/weights.safetensors photos/."""

import sys
from pathlib import Path

from rtdetrv4 import Detector

detector = Detector(weights=sys.argv[1])
for detections in detector.predict(sys.argv[2], conf=0.4, stream=True):
    for box, score, class_id in zip(detections.xyxy, detections.confidence, detections.class_id, strict=True):
        print(detections.path, detections.names[class_id], f"{score:.2f}", box.round().tolist())
    if detections.path is not None:
        detections.save(Path("detected") / Path(detections.path).name)
