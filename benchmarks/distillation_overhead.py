"""What DSI and GAM add to a training step of an S model, without the teacher's forward pass.

    python benchmarks/distillation_overhead.py

Both steps train the same detector. One of them also projects F5, aligns it with a given teacher map (768 channels, as
from a ViT-B), trains the projector, and measures AIFI's share of the gradient.

Expected: 2 minutes on two cores.
"""

from __future__ import annotations

import torch
from _measure import Results, arguments, in_turn
from _training import make_batch, make_detector, our_step

from rtdetrv4.distillation import DistillationStudent, Injector, Modulation
from rtdetrv4.training.accelerator import keep_freed_memory

TARGET = 1.03
TEACHER_DIM = 768


def main() -> None:
    """Compare steps with and without."""
    parser = arguments(__doc__, repeats=11)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=640)
    args = parser.parse_args()
    batch, size, repeats = (2, 128, 1) if args.quick else (args.batch, args.size, args.repeats)

    results = Results("distillation_overhead", args)
    keep_freed_memory()  # as training does
    made, detector = make_batch(batch, size, args.device), make_detector(args.device)
    injector = Injector(detector.hybrid_encoder.aifi.norm2.normalized_shape[0], TEACHER_DIM).to(args.device)
    teacher_map = torch.randn(batch, TEACHER_DIM, size // 32, size // 32, device=args.device)
    modulation = Modulation(5.0, rho=11, delta=1, default_weight=20, rule="gam")
    works = {
        "without": our_step(DistillationStudent(detector), made),
        "with": our_step(DistillationStudent(detector, injector), made, teacher_map, modulation),
    }
    seconds = in_turn(works, repeats)
    report = modulation.end_epoch(refinement=False)
    assert 0 < report.share < 100, "GAM has measured nothing"
    ratio = seconds["with"].median / seconds["without"].median
    results.add(f"DSI and GAM on a step, batch {batch}", ratio, TARGET, **{f"{k}_s": v for k, v in seconds.items()})
    results.note(aifi_share_percent=round(report.share, 2))
    results.save()


if __name__ == "__main__":
    main()
