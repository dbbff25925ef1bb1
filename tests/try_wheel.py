"""What `make try-wheel` runs in an environment that holds nothing but the wheel and some extras.

    python tests/try_wheel.py "[train,export]"

The base install detects with an exported model, if one is given in RTDETRV4_TRY_MODEL; [torch] runs a model with new
weights; [train,export] trains, exports, and detects with the file.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import rtdetrv4
from rtdetrv4.cli import main

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def run(*arguments: str) -> None:
    """Run a command; an exit code other than 0 ends this script."""
    if code := main(arguments):
        sys.exit(f"rtdetrv4 {' '.join(arguments)} exited with {code}")


def try_base() -> None:
    """Without torch."""
    assert importlib.util.find_spec("torch") is None, "torch came with the base install"
    run("--help")
    run("models")
    if model := os.environ.get("RTDETRV4_TRY_MODEL"):
        print(rtdetrv4.Detector(model).predict(IMAGE, conf=0.0)[0])


def try_torch() -> None:
    """A model, without what trains it."""
    import torch

    model = rtdetrv4.create_model("rtdetrv4-n", 3).eval()
    with torch.inference_mode():
        print(model(torch.rand(1, 3, 64, 64)).scores.shape)


def try_training(folder: Path) -> None:
    """From pictures to an exported file."""
    from rtdetrv4.data.synthetic import write_shapes

    data = write_shapes(folder / "shapes", num_train=8, num_val=4, image_size=64)
    out = folder / "run"
    size = ["--imgsz", "64", "--epochs", "1", "--device", "cpu", "--weights", "none"]
    run("train", "--data", str(data), "--model", "rtdetrv4-n", *size, "--out", str(out))
    run("val", "--model", str(out / "weights.safetensors"), "--data", str(data))
    file = folder / "model.onnx"
    run("export", "--model", str(out / "weights.safetensors"), "--out", str(file))
    print(rtdetrv4.Detector(str(file)).predict(IMAGE, conf=0.0)[0])


if __name__ == "__main__":
    extras = sys.argv[1]
    print(f"rtdetrv4 {rtdetrv4.__version__} from {Path(rtdetrv4.__file__).parent}")
    if not extras:
        try_base()
    elif "train" in extras:
        with tempfile.TemporaryDirectory() as folder:
            try_training(Path(folder))
    else:
        try_torch()
    print("ok")
