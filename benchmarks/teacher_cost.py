"""What a teacher costs in a training step, computed in the step or read from disk.

    python benchmarks/teacher_cost.py

RT-DETRv4-S is trained at 640×640 with batches of 4, as `Detector.train` does it: without a teacher, with DINOv2
ViT-B/14 in every step, and with its features in files (`distillation.cache=disk`), which are computed before the first
step. The teacher's weights are random, which costs the same. Images are read and augmented in the same process, and
count.

With `--device cuda`, batches have 16 images, the precision is mixed, and eight processes load the images.

Each way has its own process, and they take turns of three steps. The result is the share of the teacher in a step: the
time beyond that of a step without one, divided by the step's.

Expected: 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from _measure import Results, Side, arguments, in_turn

from rtdetrv4 import Detector
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.distillation import Teacher, load_teacher
from rtdetrv4.training import Observer
from rtdetrv4.training.reports import RunInfo, StepReport

WAYS = {"none": "none", "computed": "none", "from disk": "disk"}
"""The setting `distillation.cache` of each."""
TARGET = 0.05
STEPS = 3
TEACHER = "dinov2-b"


class Turns(Observer):
    """Lets a run take some steps for each line that it reads, and ends it at the end of the input."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def run_start(self, info: RunInfo) -> None:
        """Take the time until here, in which features are computed."""
        del info
        self._facts = {"before_s": round(time.perf_counter() - self._start, 1)}

    def step_end(self, report: StepReport) -> None:
        """Tell that the steps are done, and wait."""
        if (report.step - 1) % STEPS:
            return
        print(json.dumps(self._facts if report.step == 1 else "done"), flush=True)
        if not sys.stdin.readline():
            os._exit(0)


def teacher(quick: bool) -> Teacher:
    """DINOv2 with random weights."""
    return load_teacher("test_vit" if quick else TEACHER, pretrained=False)


def work_for(way: str, args: argparse.Namespace) -> None:
    """Train, in turns."""
    folder = Path(args.folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    size = 64 if args.quick else 640
    on_cpu = args.device == "cpu"
    Detector("rtdetrv4-s", device=args.device).train(
        folder / "data",
        epochs=1000,
        batch=4 if on_cpu else 16,
        imgsz=size,
        teacher="none" if way == "none" else teacher(args.quick),
        out=folder / f"run-{way.replace(' ', '-')}",
        callbacks=[Turns()],
        overrides={
            "distillation.cache": WAYS[way],
            "distillation.mode": "fixed",
            "data.workers": 0 if on_cpu else 8,
            "run.tracker": "none",
            "run.eval_every": 1000,
            "run.accumulate": 1,
        },
    )


def main() -> None:
    """Compare the ways."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--serve", choices=tuple(WAYS), help="used by the script itself")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help="used by the script itself")
    args = parser.parse_args()
    if args.serve:
        work_for(args.serve, args)
        return
    results = Results("teacher_cost", args)
    with tempfile.TemporaryDirectory() as name:
        write_shapes(Path(name) / "data", num_train=24 if args.device == "cpu" else 96, num_val=4, image_size=640)
        words = ["--folder", name, "--device", args.device, *(["--quick"] if args.quick else [])]
        sides = {way: Side([__file__, "--serve", way, *words]) for way in WAYS}
        times = in_turn(sides, 1 if args.quick else args.repeats)
        facts = {way: side.facts for way, side in sides.items()}
        for side in sides.values():
            side.close()
    alone = times["none"].median
    shares = {way: max(0.0, 1 - alone / times[way].median) for way in WAYS}
    results.note(
        teacher=TEACHER,
        seconds_per_step={way: round(each.median / STEPS, 3) for way, each in times.items()},
        teacher_share={way: round(share, 3) for way, share in shares.items()},
        before_the_first_step_s={way: each["before_s"] for way, each in facts.items()},
    )
    where = "" if args.device == "cpu" else f" on {torch.cuda.get_device_name(args.device)}"
    title = f"teacher's share of a step{where}, features from disk"
    results.add(title, shares["from disk"], TARGET, without_s=times["none"], from_disk_s=times["from disk"])
    results.save()


if __name__ == "__main__":
    main()
