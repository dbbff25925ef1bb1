"""How the time of our training step grows with the batch size, the boxes per image and the image size.

    python benchmarks/growth.py

One of them varies at a time; the others stay at batch 4, 7 boxes and 640 pixels. There is no target and no reference:
the plot shows whether anything grows faster than the work. A dashed line marks proportional growth.

Expected: 3 minutes on two cores.
"""

from __future__ import annotations

import torch
from _measure import RESULTS, Results, Timing, arguments, in_turn
from _training import NUM_BOXES, make_batch, make_detector, our_step
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rtdetrv4.distillation import DistillationStudent
from rtdetrv4.training.accelerator import keep_freed_memory

BATCH, SIZE = 4, 640
VARIED = {
    "images in a batch": (2, 4, 8),
    "boxes per image": (7, 30, 100, 300),
    "pixels per side": (320, 448, 640),
}
PICTURE = RESULTS.parent.parent / "docs" / "research" / "growth.png"


def main() -> None:
    """Time the steps, and plot the results."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    keep_freed_memory()  # as training does
    results = Results("growth", args)
    step_of = DistillationStudent(make_detector(args.device))
    drawn: dict[str, dict[int, Timing]] = {}
    for name, values in VARIED.items():
        drawn[name] = {}
        for value in values[:2] if args.quick else values:
            batch = value if name.startswith("images") else 2 if args.quick else BATCH
            size = value if name.startswith("pixels") else 128 if args.quick else SIZE
            num_boxes = value if name.startswith("boxes") else NUM_BOXES
            step = our_step(step_of, make_batch(batch, size, args.device, num_boxes))
            drawn[name][value] = in_turn({"step": step}, 1 if args.quick else args.repeats)["step"]
        results.note(**{name: {str(value): timing.summary for value, timing in drawn[name].items()}})
    if not args.quick:
        draw(drawn)
    results.save()


def draw(measured: dict[str, dict[int, Timing]]) -> None:
    """Draw a panel for each varied quantity."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, timings) in zip(figure.subplots(1, len(measured)), measured.items(), strict=True):
        x, seconds = list(timings), [timing.median for timing in timings.values()]
        axes.plot(x, seconds, "o-", color="#0072B2")
        power = 2 if name.startswith("pixels") else 1
        if not name.startswith("boxes"):
            axes.plot(x, [seconds[0] * (v / x[0]) ** power for v in x], "--", color="#777777", label="in proportion")
            axes.legend(frameon=False)
        axes.set_title(name, loc="left")
        axes.set_ylim(0)
        axes.set_xticks(x)
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("seconds per step")
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
