"""Does a teacher help a detector that is not ours? transformers' D-FINE-N, taught through a Tap, then given labels.

    python benchmarks/study/foreign.py --data ../shared/data

The detector is transformers' own code with random weights; the loop is plain PyTorch, as in examples/distill_loop.py.
Data, budget and arms are those of `bccd-10` in study.py: 29 photos with labels, 602 steps of 4 images at 128×128.

    off       labels alone
    before    first 704 steps of L_DSI alone on 1,417 images without labels, through a Tap; then labels
    random    as `before`, but the teacher is the same network with random weights

`--warmup` steps, linear, precede training with labels. With `--careful` the first stage is as careful as `rtdetrv4
pretrain`: a warm-up of 35 steps, gradients that are clipped, and averaged weights at the end.

A run is its averaged weights' AP after the last step, on the validation images. Runs that are in
benchmarks/results/study/foreign.json are not repeated; the summary is printed after each. Several processes may share
the work if they share no seed.

Expected: on one core 4 minutes for `off`, and 12 for each of the others.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from study import PRETRAINING_BATCH, PRETRAINING_EPOCHS, RANDOM_TEACHER, RESULTS, SETS, TEACHER
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config

from rtdetrv4.data.batch import prepare_batch
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.fraction import take_fraction
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.data.unlabeled import read_unlabeled
from rtdetrv4.distillation import Modulation, Tap, Teacher, load_teacher
from rtdetrv4.evaluation import CocoEvaluator
from rtdetrv4.training.accelerator import keep_freed_memory
from rtdetrv4.training.ema import ModelEma
from rtdetrv4.training.validation import validate
from rtdetrv4.types import Batch, DetectorOutput

ARMS = ("off", "before", "random")
FILE = RESULTS / "foreign.json"
SIZE = (128, 128)
HIDDEN, NUM_QUERIES, NUM_DENOISING = 128, 80, 30
FRACTION, BATCH, EPOCHS = 0.1, 4, 86
PRETRAINING_WARMUP = 35
LR, PRETRAINING_LR, WEIGHT_DECAY, CLIP_NORM = 8e-4, 7.1e-4, 1e-4, 0.1
FINAL_LR = 0.05
"""The learning rate falls to this share in the second half, as a cosine."""
AVERAGED = 0.05
"""The average looks back over at most this share of the steps."""
EVALUATION_BATCH = 8


def build_detector(num_classes: int, seed: int) -> DFineForObjectDetection:
    """D-FINE-N as published, with random weights."""
    backbone = HGNetV2Config(
        hidden_sizes=[64, 256, 512, 1024],  # D-FINE reads the channels of the pyramid here
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        out_features=["stage3", "stage4"],
    )
    config = DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        feat_strides=[16, 32],
        encoder_in_channels=[512, 1024],
        encode_proj_layers=[1],
        encoder_hidden_dim=HIDDEN,
        encoder_ffn_dim=512,
        hidden_expansion=0.34,
        depth_mult=0.5,
        d_model=HIDDEN,
        num_feature_levels=2,
        decoder_in_channels=[HIDDEN, HIDDEN],
        decoder_ffn_dim=512,
        decoder_layers=3,
        decoder_n_points=[6, 6],
        num_labels=num_classes,
        num_queries=NUM_QUERIES,
        num_denoising=NUM_DENOISING,
    )
    torch.manual_seed(seed)
    return DFineForObjectDetection(config)


class AsOurs(nn.Module):
    """transformers' detector with the output that `validate` reads.

    Args:
        detector: the model.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> DetectorOutput:
        """Detect in images, B×3×H×W in [0, 1]."""
        output = self.detector(pixel_values=images)
        return DetectorOutput(output.logits, output.pred_boxes)


def batches(dataset: DetectionDataset, batch: int, epochs: int, seed: int, stage: Augmentation) -> Iterator[Batch]:
    """Shuffled batches of all epochs."""
    loader = build_loader(dataset, batch, workers=0, shuffle=True, seed=seed, drop_last=True)
    for epoch in range(epochs):
        dataset.set_epoch(epoch, stage)
        loader.sampler.set_epoch(epoch)
        for each in loader:
            yield prepare_batch(each, SIZE, "cpu")


def optimizer_of(model: nn.Module, lr: float, steps: int, warmup: int = 0) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW whose learning rate is flat for half of the steps, then falls as a cosine; linear in the warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY)

    def factor(step: int) -> float:
        passed = max(2 * step / steps - 1, 0.0)
        flat = FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * passed))
        return flat * min((step + 1) / max(warmup, 1), 1.0)

    return optimizer, LambdaLR(optimizer, factor)


def averaged(model: nn.Module, steps: int) -> ModelEma:
    """The weights' average over the end of a run of so many steps."""
    look_back = max(AVERAGED * steps, 1)
    return ModelEma(model, 1 - 1 / look_back, look_back / 10)


def pretrain(model: DFineForObjectDetection, teacher: Teacher, data: Path, seed: int, careful: bool) -> float:
    """Teach the backbone and AIFI through a Tap, without labels; returns the last L_DSI."""
    split = read_unlabeled([str(data / name) for name in SETS])
    stage = Augmentation(flip=0.5, photometric=0.5, random_crop=0.2, permutes=0.0)
    dataset = DetectionDataset(split, SIZE, stage, seed)
    steps = PRETRAINING_EPOCHS * (len(dataset) // PRETRAINING_BATCH)
    with Tap(model, "model.encoder.aifi.0", teacher, Modulation(1.0), dim=HIDDEN) as tap:
        optimizer, schedule = optimizer_of(model, PRETRAINING_LR, steps, PRETRAINING_WARMUP if careful else 0)
        average = averaged(model, steps)
        model.train()
        for batch in batches(dataset, PRETRAINING_BATCH, PRETRAINING_EPOCHS, seed, stage):
            model(pixel_values=batch.images)
            optimizer.zero_grad()
            tap.loss(batch.images).backward()
            if careful:
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP_NORM)
            optimizer.step()
            schedule.step()
            average.update(model)
        if careful:
            model.load_state_dict(average.module.state_dict())
        return tap.values()["distill"]


def train(model: DFineForObjectDetection, data: Path, seed: int, warmup: int) -> dict[str, float]:
    """Train with labels, and evaluate the averaged weights."""
    splits = read_splits(data / "bccd")
    assert splits.train is not None
    assert splits.val is not None
    few, _ = take_fraction(splits.train, FRACTION)
    stage = Augmentation(flip=0.5)
    dataset = DetectionDataset(few, SIZE, stage, seed)
    steps = EPOCHS * (len(dataset) // BATCH)
    optimizer, schedule = optimizer_of(model, LR, steps, warmup)
    ema = averaged(model, steps)
    model.train()
    for batch in batches(dataset, BATCH, EPOCHS, seed, stage):
        labels = [{"class_labels": labels, "boxes": boxes} for labels, boxes in batch.targets.split()]
        optimizer.zero_grad()
        model(pixel_values=batch.images, labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        ema.update(model)
    loader = build_loader(DetectionDataset(splits.val, SIZE), EVALUATION_BATCH, workers=0, shuffle=False)
    evaluator = CocoEvaluator(splits.val.records, splits.val.classes)
    metrics = validate(AsOurs(ema.module), loader, evaluator, image_size=SIZE, num_top=NUM_QUERIES)
    return {"ap": metrics.ap, "ap50": metrics.ap50}


def run(arm: str, seed: int, warmup: int, careful: bool, data: Path) -> dict[str, Any]:
    """One run from random weights to its AP."""
    labeled = read_splits(data / "bccd").train
    assert labeled is not None
    model = build_detector(len(labeled.classes.names), seed)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    told: dict[str, Any] = {"arm": arm, "seed": seed, "warmup": warmup, "careful": careful}
    if arm != "off":
        teacher = load_teacher(TEACHER) if arm == "before" else load_teacher(RANDOM_TEACHER, pretrained=False)
        told["distill"] = pretrain(model, teacher, data, seed, careful)
    torch.manual_seed(seed)  # denoising draws from it, in all arms alike
    return told | train(model, data, seed, warmup)


def add(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a run to the file, which other processes may write, too."""
    FILE.touch()
    with FILE.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        runs: list[dict[str, Any]] = json.loads(file.read() or "[]")
        runs.append(result)
        runs.sort(key=lambda each: (each["warmup"], each["careful"], each["arm"], each["seed"]))
        file.seek(0)
        file.truncate()
        file.write(json.dumps(runs, indent=1) + "\n")
    return runs


def summary(runs: list[dict[str, Any]]) -> str:
    """Means, and differences from `off` in pairs."""
    found = {arm: {each["seed"]: 100 * each["ap"] for each in runs if each["arm"] == arm} for arm in ARMS}
    lines = []
    for arm, by_seed in found.items():
        pairs = [by_seed[seed] - found["off"][seed] for seed in sorted(by_seed.keys() & found["off"].keys())]
        if by_seed:
            differences = "" if arm == "off" else "  minus off: " + ", ".join(f"{each:+.1f}" for each in pairs)
            lines.append(f"{arm:8} {statistics.mean(by_seed.values()):5.1f}  ({len(by_seed)} seeds){differences}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="2,3,4")
    parser.add_argument("--warmup", type=int, default=0, help="steps (default: %(default)s)")
    parser.add_argument("--careful", action="store_true", help="clip, warm up and average before the labels, too")
    options = parser.parse_args()
    for seed in map(int, options.seeds.split(",")):
        for arm in options.arms.split(","):
            runs = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
            setting = {"warmup": options.warmup, "careful": options.careful}
            wanted = {"arm": arm, "seed": seed, **setting}
            if not any(wanted.items() <= each.items() for each in runs):
                runs = add(run(arm, seed, **setting, data=options.data.resolve()))
                print(summary([each for each in runs if setting.items() <= each.items()]), flush=True)


if __name__ == "__main__":
    main()
