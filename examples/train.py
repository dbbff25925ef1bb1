"""Train on your own data, with a teacher: python examples/train.py datasets/mine."""

import sys

from rtdetrv4 import Detector

if __name__ == "__main__":  # outside Linux, and since Python 3.14, each data worker imports this file
    detector = Detector("rtdetrv4-s")
    result = detector.train(
        sys.argv[1],  # a folder in COCO, YOLO or Pascal VOC layout
        epochs=50,
        batch=16,
        teacher="dinov2-b",  # Apache 2.0; "none" trains without distillation
        out="runs/mine",
    )
    if result.metrics is not None:  # there are validation images
        print(f"AP {result.metrics.ap:.3f}, AP50 {result.metrics.ap50:.3f}")
    print(f"weights in {result.weights}")
