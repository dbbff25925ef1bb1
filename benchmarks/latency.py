"""How long one batch takes, step by step, on this machine.

    python benchmarks/latency.py --models rtdetrv4-s --device cuda --dtype float16

Weights are random, which does not affect timing: the graph does not branch on values. JPEG decoding is not included.
On an NVIDIA GPU, the network's kernels are replayed as in `predict`, unless `--launch` is given. float16 and bfloat16
are those of autocast.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rtdetrv4 import create_model
from rtdetrv4.models import fuse, postprocess
from rtdetrv4.ops.cuda_graphs import CudaGraphs
from rtdetrv4.runtime import preprocess

PHOTO_HW = (720, 1280)


def milliseconds(work: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Return median and 90th percentile of `repeats` synchronized runs, after a warm-up."""
    times = []
    for _ in range(repeats + max(repeats // 5, 3)):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    measured = times[-repeats:]
    return {"median": round(float(np.median(measured)), 3), "p90": round(float(np.percentile(measured, 90)), 3)}


@torch.inference_mode()
def measure(
    name: str, device: torch.device, dtype: torch.dtype, batch: int, size: int, repeats: int, launch: bool
) -> dict[str, Any]:
    """Measure the latencies of one model in milliseconds per batch."""
    fused = fuse(create_model(name)).to(device)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Without a cache of converted weights, which would be memory of a recording.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            output = fused(images)
        return output.logits, output.boxes

    model = run if launch else CudaGraphs(run)
    photos = [np.random.default_rng(0).integers(0, 256, (*PHOTO_HW, 3), dtype=np.uint8)] * batch
    sizes_hw = torch.tensor([PHOTO_HW] * batch, device=device)

    def load() -> torch.Tensor:
        return torch.from_numpy(preprocess(photos, (size, size))).to(device)

    images = load()
    found = model(images)

    def everything() -> None:
        postprocess(*model(load()), sizes_hw).boxes_xyxy_px.cpu()

    return {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in fused.parameters()),
        "preprocess": milliseconds(load, device, repeats),
        "network": milliseconds(lambda: model(images), device, repeats),
        "postprocess": milliseconds(lambda: postprocess(*found, sizes_hw), device, repeats),
        "end_to_end": milliseconds(everything, device, repeats),
    }


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw a bar per model, split into the three steps."""
    figure = Figure(figsize=(7, 1.5 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    left = np.zeros(len(rows))
    for part in ("preprocess", "network", "postprocess"):
        medians = np.array([row[part]["median"] for row in rows])
        axes.barh([row["model"] for row in rows], medians, left=left, label=part)
        left += medians
    axes.invert_yaxis()
    axes.set(xlabel="median ms per batch", title=title)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure every named model, and write latency.json and latency.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rtdetrv4-s", "rtdetrv4-m", "rtdetrv4-l", "rtdetrv4-x"])
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--launch", action="store_true", help="on a GPU, launch each kernel anew")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, and writes nothing")
    args = parser.parse_args()
    if args.quick:
        args.models, args.size, args.repeats = ["test"], 64, 1

    hardware = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else platform.processor()
    setting = {
        "device": f"{args.device} ({hardware or platform.machine()})",
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        "replayed": args.device.type == "cuda" and not args.launch,
        "batch": args.batch,
        "image_size": [args.size, args.size],
        "photo_size": list(PHOTO_HW),
        "repeats": args.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(setting))
    rows = []
    dtype = getattr(torch, args.dtype)
    for name in args.models:
        rows.append(measure(name, args.device, dtype, args.batch, args.size, args.repeats, args.launch))
        print(json.dumps(rows[-1]))
    if args.quick:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "latency.json").write_text(json.dumps({"setting": setting, "models": rows}, indent=2) + "\n")
    draw(rows, f"{setting['device']}, {args.dtype}, batch {args.batch}", args.out / "latency.png")


if __name__ == "__main__":
    main()
