"""How bfloat16 changes the time of a training step on this processor, the basis of `run.amp: auto` on CPUs.

    python benchmarks/bf16_step.py

Both sides train the same detector on the same batch, configured like `rtdetrv4 train`, one with `amp: bf16` and one
with `amp: off`. Whether bfloat16 pays off depends on the processor's instructions for it, which are recorded with the
times: AMX multiplies many times as fast as float32, AVX512-BF16 at most twice as fast.

Expected: 4 minutes on two cores.
"""

from __future__ import annotations

import torch
from _measure import Results, arguments, environment, in_turn
from _training import make_batch, make_detector, our_step

from rtdetrv4.distillation import DistillationStudent
from rtdetrv4.training import make_accelerator

TARGET = 0.9
CASES = {"rtdetrv4-s": (4, 640), "rtdetrv4-n": (8, 320)}
"""Batch and image size of each model."""
INSTRUCTIONS = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}


def main() -> None:
    """Compare the two formats."""
    args = arguments(__doc__, repeats=5).parse_args()
    results = Results("bf16_step", args)
    has = [name for name, test in INSTRUCTIONS.items() if getattr(torch.cpu, test, bool)()]
    processor = f"{environment()['cpu']}, {' and '.join(has) or 'neither AMX nor AVX512-BF16'}"
    results.note(processor=processor)
    for model, (batch, size) in CASES.items():
        if args.quick:
            batch, size = 2, 128
        steps = {}
        for amp in ("bf16", "off"):
            student = DistillationStudent(make_detector(torch.device("cpu"), model))
            prepared = make_accelerator("cpu", amp).prepare(student)
            steps[amp] = our_step(prepared, make_batch(batch, size, torch.device("cpu")), model=model)
        seconds = in_turn(steps, 1 if args.quick else args.repeats)
        results.add(
            f"bfloat16 step of {model}, batch {batch}, {size} px",
            seconds["bf16"].median / seconds["off"].median,
            TARGET,
            bfloat16_s=seconds["bf16"],
            float32_s=seconds["off"],
            processor=processor,
        )
    results.save()


if __name__ == "__main__":
    main()
