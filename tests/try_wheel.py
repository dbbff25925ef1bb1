"""What `make try-wheel` runs in environments that hold nothing but the wheel and some extras, one after the other.

    python tests/try_wheel.py "[train,export]" model.onnx

[train,export] trains, exports to the file, and detects with it; [torch] runs a model with new weights; the base install
detects with the file, and [serve] answers a request with it.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

import rtdetrv4
from rtdetrv4.cli import main

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def run(*arguments: str) -> None:
    """Run a command; an exit code other than 0 ends this script."""
    if code := main(arguments):
        sys.exit(f"rtdetrv4 {' '.join(arguments)} exited with {code}")


def try_base(model: Path, folder: Path) -> None:
    """Without torch."""
    assert importlib.util.find_spec("torch") is None, "torch came with the base install"
    run("--help")
    run("models")
    print(rtdetrv4.Detector(model).predict(PIXELS, conf=0.0)[0])
    Image.fromarray(PIXELS).save(folder / "image.png")
    run("predict", str(folder / "image.png"), "--model", str(model), "--conf", "0", "--out", str(folder / "found"))


def try_torch() -> None:
    """A model, without what trains it."""
    import torch

    model = rtdetrv4.create_model("rtdetrv4-n", 3).eval()
    with torch.inference_mode():
        print(model(torch.rand(1, 3, 64, 64)).logits.shape)


def try_training(model: Path, folder: Path) -> None:
    """From pictures to an exported file."""
    from rtdetrv4.data.synthetic import write_shapes

    data = write_shapes(folder / "shapes", num_train=8, num_val=4, image_size=64)
    out = folder / "run"
    size = ["--imgsz", "64", "--epochs", "1", "--device", "cpu", "--weights", "none"]
    run("train", "--data", str(data), "--model", "rtdetrv4-n", *size, "--out", str(out))
    run("val", "--model", str(out / "weights.safetensors"), "--data", str(data))
    run("export", "--model", str(out / "weights.safetensors"), "--out", str(model))
    print(rtdetrv4.Detector(model).predict(PIXELS, conf=0.0)[0])


def try_serving(model: Path, folder: Path) -> None:
    """A server, asked once; without torch."""
    assert importlib.util.find_spec("torch") is None, "torch came with the server"
    Image.fromarray(PIXELS).save(folder / "image.png")
    command = [str(Path(sys.executable).with_name("rtdetrv4")), "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        lines: list[str] = []
        while not lines or "Serving at " not in lines[-1]:
            lines.append(server.stdout.readline())
            assert lines[-1], f"the server ended: {lines}"
        address = lines[-1].split("Serving at ")[1].split(";")[0]
        with urllib.request.urlopen(f"{address}/health") as answer:
            print(json.load(answer))
        headers = {"Content-Type": "image/png"}
        request = urllib.request.Request(f"{address}/predict?conf=0.05", (folder / "image.png").read_bytes(), headers)
        with urllib.request.urlopen(request) as answer:
            print(len(json.load(answer)["images"][0]["detections"]), "objects")
        server.terminate()
        assert server.wait() == 0, "the server was stopped, and its exit code is not 0"


if __name__ == "__main__":
    extras, model = sys.argv[1], Path(sys.argv[2]).resolve()
    print(f"rtdetrv4 {rtdetrv4.__version__} from {Path(rtdetrv4.__file__).parent}")
    with tempfile.TemporaryDirectory() as name:
        if "train" in extras:
            try_training(model, Path(name))
        elif "torch" in extras:
            try_torch()
        elif "serve" in extras:
            try_serving(model, Path(name))
        else:
            try_base(model, Path(name))
    print("ok")
