"""Export, then run without torch: python examples/export_onnx.py runs/mine/weights.safetensors photo.jpg."""

import sys

from rtdetrv4 import Detector, ExportedDetector

path = Detector(weights=sys.argv[1]).export("onnx")

session = ExportedDetector(path)  # from here on, no torch is needed
print(session.metadata.names, session.metadata.image_size)
print(session.predict(sys.argv[2], conf=0.4)[0])
