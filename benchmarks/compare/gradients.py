"""Do DSI and the detection losses pull the same way? The cosine between their gradients, epoch by epoch.

    python benchmarks/compare/gradients.py --data ../shared/data/bccd --model benchmarks/compare/lite0.yaml --name bccd

Trains as `compare --arms fixed` does. After every epoch the two gradients are taken for a few batches, on AIFI and on
the backbone, of a copy of the student. Beside their cosine stands the ratio of their lengths, λ included.

Expected: twice as long as a run.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from rtdetrv4.assembly import build_detector
from rtdetrv4.assembly.training import build_trainer
from rtdetrv4.config import load_recipe, override
from rtdetrv4.data.batch import prepare_batch
from rtdetrv4.data.formats import read_splits
from rtdetrv4.distillation import alignment_loss
from rtdetrv4.losses import weighted_sum
from rtdetrv4.training import Trainer
from rtdetrv4.training.reports import EpochReport, Observer

RESULTS = Path(__file__).parents[1] / "results" / "compare"
NUM_BATCHES = 8


class EnoughError(Exception):
    """All epochs that were asked for are measured."""


class GradientWatch(Observer):
    """Measures after each epoch, on a copy, so that the run goes on as if nothing had happened."""

    def __init__(self, trainer: Trainer, weight: float, num_epochs: int) -> None:
        self.trainer, self.weight, self.num_epochs = trainer, weight, num_epochs
        self.rows: list[dict[str, float]] = []

    def epoch_end(self, report: EpochReport) -> None:
        """Add a row."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(report.epoch)
            self.rows.append({"epoch": report.epoch, **self._measure()})
        print(self.rows[-1], flush=True)
        if report.epoch >= self.num_epochs:
            raise EnoughError

    def _measure(self) -> dict[str, float]:
        trainer, student = self.trainer, copy.deepcopy(self.trainer.student).train()
        assert trainer.teacher is not None
        parts: dict[str, nn.Module] = {"aifi": student.aifi, "backbone": student.get_submodule("detector.backbone")}
        cosines: dict[str, list[float]] = {name: [] for name in parts}
        ratios: dict[str, list[float]] = {name: [] for name in parts}
        for batch in islice(trainer.data.batches(10_000, trainer.plan.stage(0), 0), NUM_BATCHES):
            batch = prepare_batch(batch, (batch.images.shape[-2], batch.images.shape[-1]), torch.device("cpu"))
            output, projected = student(batch.images, batch.targets)
            assert projected is not None
            detection = weighted_sum(trainer.criterion(output, batch.targets), trainer.weights)
            teacher_map = trainer.teacher(batch.images, (projected.shape[-2], projected.shape[-1]))
            distillation = self.weight * alignment_loss(projected, teacher_map)
            for name, part in parts.items():
                first, second = _gradient(detection, part), _gradient(distillation, part)
                cosines[name].append(torch.cosine_similarity(first, second, dim=0).item())
                ratios[name].append((second.norm() / first.norm()).item())
        return {
            f"{name}_{what}": round(statistics.fmean(values[name]), 3)
            for name in parts
            for what, values in (("cosine", cosines), ("ratio", ratios))
        }


def main() -> None:
    """Print a row for each epoch, and write them down."""
    parser = argparse.ArgumentParser(description="The cosine between the gradients of DSI and of detection.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--name", required=True, help="of the result: results/compare/gradients-NAME.json")
    parser.add_argument("--out", type=Path, default=Path("runs/gradients"))
    args = parser.parse_args()
    recipe = override(load_recipe(args.model), {"run.out": str(args.out), "distillation.mode": "fixed"})
    splits = read_splits(args.data)
    assert splits.train is not None
    torch.manual_seed(recipe.run.seed)
    trainer = build_trainer(recipe, splits, build_detector(recipe, splits.train.classes.num_classes))
    watch = GradientWatch(trainer, recipe.distillation.weight, args.epochs)
    trainer.observers = [watch]
    args.out.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(EnoughError):
        trainer.run()
    facts = {"data": Path(args.data).name, "recipe": Path(args.model).name, "rows": watch.rows}
    (RESULTS / f"gradients-{args.name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _gradient(loss: Tensor, part: nn.Module) -> Tensor:
    parameters = [p for p in part.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


if __name__ == "__main__":
    main()
