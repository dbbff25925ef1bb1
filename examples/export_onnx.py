"""Export, then run without torch: python examples/export_onnx.py runs/mine/weights.safetensors photo.jpg."""

import sys

import cv2

from rtdetrv4 import Detector
from rtdetrv4.runtime import OnnxSession

path = Detector(weights=sys.argv[1]).export("onnx")

session = OnnxSession(path)  # from here on neither torch nor the training code is needed
image = cv2.cvtColor(cv2.imread(sys.argv[2]), cv2.COLOR_BGR2RGB)
detections = session.predict([image], conf=0.4)[0]
print(f"{len(detections)} objects:", sorted({detections.names[k] for k in detections.class_id}))
