"""Detect and draw: python examples/predict.py runs/mine/weights.safetensors photos/."""

import sys
from pathlib import Path

from rtdetrv4 import Detector

detector = Detector(weights=sys.argv[1])
for detections in detector.predict(sys.argv[2], conf=0.4, stream=True):
    for xyxy, confidence, _, name in detections:
        print(detections.path, name, f"{confidence:.2f}", xyxy.round().tolist())
    if detections.path is not None:
        detections.save(Path("detected") / Path(detections.path).name)
