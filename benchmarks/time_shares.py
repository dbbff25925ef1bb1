"""Where the time of a training step goes: before optimization, now, and in transformers.

    python benchmarks/time_shares.py

A step of RT-DETRv4-S at 640×640, batch 4, phase by phase: data (the batch is read, augmented and collated on one core,
in the main process, whereas training has workers for it), the teacher's forward with DSI's loss, the student's forward,
matching and losses, backward, and the optimizer with clipping, GAM and EMA. The reference is transformers' D-FINE-S
with torchvision's transforms; it has no teacher. "Before" is another checkout of this package:

    git worktree add ../before 3e207c7
    python benchmarks/time_shares.py --before ../before

Each side runs in its own process, a few steps at a time, twice in turn; medians are shown. There is no target.

Expected: 5 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from _measure import RESULTS, Results, arguments
from _training import CLIP_NORM, LEARNING_RATE, MODEL, NUM_CLASSES, WEIGHT_DECAY, count_parameters
from augmentation import STAGES, Labeled, write_photos
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

COLORS = {
    "data": "#56B4E9",
    "teacher": "#CC79A7",
    "forward": "#0072B2",
    "loss": "#E69F00",
    "backward": "#009E73",
    "optimizer": "#777777",
}
STAGE = STAGES["mosaic stage"]
TEACHER = "efficientnet_lite2"
PICTURE = RESULTS.parent.parent / "docs" / "research" / "time-shares.png"

seconds: defaultdict[str, list[float]] = defaultdict(list)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Time the body of the `with` statement."""
    start = time.perf_counter()
    yield
    seconds[name].append(time.perf_counter() - start)


def our_step(folder: Path, batch: int, size: int, *, before: bool) -> Callable[[], None]:
    """Take steps as the training loop does; `before`: as it was configured then."""
    from rtdetrv4.assembly import create_model
    from rtdetrv4.assembly.models import find_variant
    from rtdetrv4.assembly.training import build_criterion, loss_weights
    from rtdetrv4.config import load_recipe
    from rtdetrv4.data.batch import pack, prepare_batch
    from rtdetrv4.data.dataset import DetectionDataset
    from rtdetrv4.data.records import Split
    from rtdetrv4.distillation import DistillationStudent, Injector, Modulation, alignment_loss, load_teacher
    from rtdetrv4.losses import weighted_sum
    from rtdetrv4.training import ModelEma, adamw, parameter_groups
    from rtdetrv4.types import ClassMap

    names = tuple(str(k) for k in range(NUM_CLASSES))
    split = Split(folder, write_photos(folder, 4 * batch), ClassMap(names, tuple(range(NUM_CLASSES))), "", ())
    dataset = DetectionDataset(split, (size, size), STAGE)
    recipe, teacher = load_recipe(MODEL), load_teacher(TEACHER)
    criterion = build_criterion(recipe.loss, find_variant(MODEL))
    torch.manual_seed(0)
    detector = create_model(MODEL, NUM_CLASSES)
    student = DistillationStudent(detector, Injector(256, teacher.dim)).train()
    if not before:
        from rtdetrv4.models import recompute_activations
        from rtdetrv4.training.accelerator import keep_freed_memory

        keep_freed_memory()
        recompute_activations(detector)
        student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ema = ModelEma(student, 0.9999, 1000)
    modulation = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="gam")
    optimizer = adamw(parameter_groups(student, lr=LEARNING_RATE, backbone_lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY))
    parameters = list(student.parameters())
    weights = loss_weights(recipe.loss) | {"distill": 5.0}
    order = iter(list(range(4 * batch)) * 100)

    def step() -> None:
        with phase("data"):
            read = pack([dataset[next(order)] for _ in range(batch)])
            ready = prepare_batch(read, (size, size), torch.device("cpu"))
        optimizer.zero_grad()
        with phase("forward"):
            output, projected = student(ready.images, ready.targets)
        with phase("loss"):
            terms = criterion(output, ready.targets)
        with phase("teacher"):
            assert projected is not None
            terms["distill"] = alignment_loss(projected, teacher(ready.images, (size // 32, size // 32)))
        with phase("backward"):
            weighted_sum(terms, weights).backward()
        with phase("optimizer"):
            modulation.observe(student.aifi, student)
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            ema.update(student)

    return step


def their_step(folder: Path, batch: int, size: int) -> Callable[[], None]:
    """Take the same steps with transformers, without a teacher."""
    from _torchvision_pipeline import TorchvisionPipeline
    from training_step import make_theirs

    records = write_photos(folder, 4 * batch)
    images = [
        Labeled(folder / r.info.file_name, torch.from_numpy(r.boxes_xyxy_px), torch.from_numpy(r.labels))
        for r in records
    ]
    pipeline = TorchvisionPipeline(images, (size, size), STAGE)
    model = make_theirs(torch.device("cpu")).train()
    assert count_parameters(model) > 0
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999))
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    order = iter(list(range(4 * batch)) * 100)
    loss_function = model.loss_function

    def timed_loss(*args: object, **kwargs: object) -> object:
        with phase("loss"):
            return loss_function(*args, **kwargs)

    model.loss_function = timed_loss

    def step() -> None:
        with phase("data"):
            samples = [pipeline[next(order)] for _ in range(batch)]
            pixels = torch.stack([image for image, _ in samples]).float() / 255
            labels = [{"class_labels": t["labels"], "boxes": t["boxes"].as_subclass(torch.Tensor)} for _, t in samples]
        optimizer.zero_grad()
        with phase("forward"):
            loss = model(pixel_values=pixels, labels=labels).loss
        seconds["forward"][-1] -= seconds["loss"][-1]
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            ema.update_parameters(model)

    return step


def work_for(side: str, args: argparse.Namespace) -> None:
    """Run as one of the sides, and print seconds by phase, without the first step."""
    with tempfile.TemporaryDirectory() as name:
        batch, size = (2, 128) if args.quick else (args.batch, 640)
        folder = Path(name)
        if side == "transformers":
            step = their_step(folder, batch, size)
        else:
            step = our_step(folder, batch, size, before=side == "before")
        for _ in range(2 if args.quick else 1 + args.repeats):
            step()
    print(json.dumps({name: seconds[name][1:] for name in COLORS if name in seconds}))


def main() -> None:
    """Measure the sides in turn, and plot the results."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--before", type=Path, help="another checkout of this package")
    parser.add_argument("--serve", choices=("before", "now", "transformers"), help="be one of the sides")
    args = parser.parse_args()
    if args.serve:
        work_for(args.serve, args)
        return
    sides = ["transformers", *(["before"] if args.before else []), "now"]
    measured: dict[str, defaultdict[str, list[float]]] = {side: defaultdict(list) for side in sides}
    for _ in range(1 if args.quick else 2):
        for side in sides:
            words = [__file__, "--serve", side, "--batch", str(args.batch), "--repeats", str(args.repeats)]
            paths = {"PYTHONPATH": str(args.before / "src")} if side == "before" else {}
            done = subprocess.run(
                [sys.executable, *words, *(["--quick"] if args.quick else [])],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=os.environ | paths,
            )
            for name, values in json.loads(done.stdout.splitlines()[-1]).items():
                measured[side][name] += values
    medians = {side: {n: round(statistics.median(v), 4) for n, v in m.items()} for side, m in measured.items()}
    results = Results("time_shares", args)
    for side, by_phase in medians.items():
        total = sum(by_phase.values())
        results.note(**{side: {"seconds": by_phase, "shares": {n: round(s / total, 3) for n, s in by_phase.items()}}})
    if not args.quick:
        draw(medians)
    results.save()


def draw(medians: dict[str, dict[str, float]]) -> None:
    """Draw a bar per side, with the time of a step split into phases."""
    figure = Figure(figsize=(10, 1.2 + 0.7 * len(medians)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, by_phase in enumerate(medians.values()):
        left = 0.0
        for name, color in COLORS.items():
            width = by_phase.get(name, 0.0)
            axes.barh(row, width, left=left, color=color, label=name if row == len(medians) - 1 else None)
            if width > 0.12:
                axes.text(left + width / 2, row, f"{width:.2f}", ha="center", va="center", color="white")
            left += width
        axes.text(left, row, f" {left:.2f} s", va="center")
    axes.set_yticks(range(len(medians)), list(medians))
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("seconds of a training step, batch 4 at 640×640")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(COLORS), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
