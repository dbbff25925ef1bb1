"""A training step of an S model against transformers' D-FINE of the same size.

    python benchmarks/training_step.py

Ours is RT-DETRv4-S without a teacher. transformers' D-FINE-S has the same layers, with ReLU where ours has SiLU, and
its own HGNetV2-B0; batch norms are trained on both sides, and both must have the same number of parameters. A step is
forward, losses, backward, clipping and AdamW, with the same images, boxes, number of queries and of denoising queries.
transformers supervises fewer heads, see loss.py.

Each side has its own process, and they work in turn. Ours is configured like `rtdetrv4 train`: feature maps are
channels-last, and on a CPU the C library keeps freed memory. The latter is one call that anyone could make, and
accounts for part of the gain, so transformers is also timed with it, as a note beside the result.

    python benchmarks/training_step.py --device cuda --bf16 --batch 16

On a GPU, the names of the results say so. `--bf16` trains both in mixed precision, as accelerate prepares them, for
`rtdetrv4 train` and for transformers' Trainer alike.

Peak memory is the largest resident size of a process that only takes two steps, with the libraries of both sides
imported on both sides; on a GPU, the most memory that torch allocated. The larger of two runs counts.

Also recorded: floating-point operations of convolutions and matrix products per step (attention and sampling are not
counted), and the resulting FLOP/s, compared with those of a plain matrix product in the same run.

Expected: 6 to 8 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from _measure import Results, Side, arguments, in_turn, operator_shares, peak_memory, resident_mib, serve
from _training import (
    CLIP_NORM,
    LEARNING_RATE,
    NUM_CLASSES,
    NUM_DENOISING,
    NUM_QUERIES,
    WEIGHT_DECAY,
    TrainingBatch,
    count_parameters,
    make_batch,
    make_detector,
    our_step,
)
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

from rtdetrv4.distillation import DistillationStudent
from rtdetrv4.training.accelerator import keep_freed_memory

TIME_TARGET, MEMORY_TARGET = 0.7, 0.9
SIDES = ("ours", "transformers", "transformers, memory kept")
MEMORY_RUNS = 2
MATRIX_SIDE = 2048


def make_theirs(device: torch.device) -> DFineForObjectDetection:
    """Build D-FINE-S as published, from transformers' own code, with random weights."""
    backbone = HGNetV2Config(
        hidden_sizes=[64, 256, 512, 1024],  # D-FINE reads the channels of the pyramid here
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[256, 512, 1024],
        depth_mult=0.34,
        hidden_expansion=0.5,
        decoder_layers=3,
        decoder_n_points=[3, 6, 3],
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        num_denoising=NUM_DENOISING,
    )
    torch.manual_seed(0)
    return DFineForObjectDetection(config).to(device)


def their_step(model: DFineForObjectDetection, batch: TrainingBatch) -> Callable[[], float]:
    """Make the same step as `our_step`."""
    labels = [{"class_labels": labels, "boxes": boxes} for labels, boxes in batch.targets.split()]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    model.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = model(pixel_values=batch.images, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def make_step(side: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], float]]:
    """Return the model of a side, and its step."""
    batch = make_batch(args.batch, args.size, args.device)
    is_ours = side == "ours"
    model = DistillationStudent(make_detector(args.device)) if is_ours else make_theirs(args.device)
    if args.bf16:
        model = Accelerator(mixed_precision="bf16", cpu=args.device.type == "cpu").prepare_model(model)
    return model, our_step(model, batch) if is_ours else their_step(model, batch)


def set_up(side: str, device: torch.device) -> None:
    """Configure the process before it trains."""
    if side in ("ours", "transformers, memory kept") and device.type == "cpu":
        keep_freed_memory()


def report_memory(side: str, args: argparse.Namespace) -> None:
    """Take two steps, because the first creates the optimizer's state; for `peak_memory`."""
    is_cuda = args.device.type == "cuda"
    set_up(side, args.device)
    _, step = make_step(side, args)
    before = torch.cuda.memory_allocated() / 2**20 if is_cuda else resident_mib()
    for _ in range(2):
        step()
    peak = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else resident_mib()
    print(json.dumps({"before_mib": round(before), "peak_mib": round(peak)}))


def measure_memory(side: str, words: list[str], runs: int) -> dict[str, float]:
    """Return the peak memory of a side, the largest over `runs` processes."""
    words = ["--memory-of", side, *words]
    return max((peak_memory([str(Path(__file__)), *words]) for _ in range(runs)), key=lambda run: run["peak_mib"])


def work_for(side: str, args: argparse.Namespace) -> None:
    """Run as one of the sides."""
    set_up(side, args.device)
    model, step = make_step(side, args)
    with FlopCounterMode(display=False) as counter:
        step()
    facts = {"parameters": count_parameters(model), "gflop": counter.get_total_flops() / 1e9}
    serve(step, {**facts, "profile": operator_shares(step)})


def main() -> None:
    """Compare time and memory at two batch sizes."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, help="only this batch size")
    parser.add_argument("--bf16", action="store_true", help="mixed precision with bfloat16")
    parser.add_argument("--memory-of", choices=SIDES, help="print the memory of one side, and end")
    parser.add_argument("--serve", choices=SIDES, help="be one of the sides")
    args = parser.parse_args()
    if args.memory_of:
        report_memory(args.memory_of, args)
        return
    if args.serve:
        work_for(args.serve, args)
        return
    size, repeats, memory_runs = (128, 1, 1) if args.quick else (args.size, args.repeats, MEMORY_RUNS)
    batches = [args.batch] if args.batch else [2] if args.quick else [4, 8]

    where = [] if args.device.type == "cpu" else [torch.cuda.get_device_name(args.device)]
    where += ["bfloat16"] if args.bf16 else []
    results = Results("training_step", args)
    matrix = torch.rand(MATRIX_SIDE, MATRIX_SIDE, device=args.device)
    for batch in batches:
        words = ["--batch", str(batch), "--size", str(size), "--device", str(args.device)]
        words += ["--bf16"] if args.bf16 else []
        chosen = SIDES if batch == batches[0] else SIDES[:2]  # three at once take 20 GB at batch 8
        sides = {side: Side([str(Path(__file__)), "--serve", side, *words]) for side in chosen}
        counts = {side: running.facts["parameters"] for side, running in sides.items()}
        assert len(set(counts.values())) == 1, f"not the same network: {counts}"
        seconds = in_turn({**sides, "matrix product": lambda: (matrix @ matrix).sum().item()}, repeats)
        own, other, *kept = (seconds[side] for side in chosen)
        name = ", ".join(("training step", *where, f"batch {batch}"))
        results.add(f"{name}, time", own.median / other.median, TIME_TARGET, ours_s=own, transformers_s=other)
        for timing in kept:
            ratio = round(own.median / timing.median, 3)
            results.note(**{f"{name}, time, transformers with memory kept too": f"ratio {ratio}"})

        product = 2 * MATRIX_SIDE**3 / seconds["matrix product"].median / 1e9
        for side, running in sides.items():
            gflop = running.facts["gflop"]
            speed = gflop / seconds[side].median
            facts = {"gflop": round(gflop, 1), "gflop_per_s": round(speed, 1), "matrix_gflop_per_s": round(product, 1)}
            facts |= {"of_matrix_product": round(speed / product, 3), "profile": running.facts["profile"]}
            results.note(**{f"{name}, {side}": facts})
            running.close()

        measured = [measure_memory(side, words, memory_runs) for side in SIDES[:2]]
        own_memory, other_memory = measured
        ratio = own_memory["peak_mib"] / other_memory["peak_mib"]
        results.add(f"{name}, peak memory", ratio, MEMORY_TARGET, ours=own_memory, transformers=other_memory)
    results.save()


if __name__ == "__main__":
    main()
