"""What each of two processes does in `behavior/test_ranks.py`, where a new process can import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.training import Trainer
from rtdetrv4.training.checkpoint import load_checkpoint
from small_training import (
    WEIGHTS,
    assert_same,
    fixed_score,
    make_detector,
    make_plan,
    make_pseudo_labels,
    make_trainer,
    make_unlabeled,
    with_frozen_norms,
    write_images,
)

STEPS = 5


def make_equal(folder: Path) -> Trainer:
    """A run in which nothing depends on how a batch is split.

    Left out is what does, by design: batch norm statistics (GPUs share them through SyncBatchNorm, CPUs cannot),
    denoising groups, whose number follows the most boxes in an image of the batch, and DDF, which balances its two
    parts by counts of the batch.
    """
    torch.manual_seed(0)
    flips = Augmentation(flip=0.5)
    found = write_images(folder / "found", 12, empty=(5,))
    return make_trainer(
        write_images(folder / "images", 4 * STEPS, empty=(3,)),
        folder,
        plan=make_plan(epochs=1, steps_per_epoch=STEPS, refine_from=1),
        detector=with_frozen_norms(make_detector(num_denoising=0)),
        weights=WEIGHTS | {"ddf": 0.0},
        augment=flips,
        unlabeled=make_unlabeled(write_images(folder / "unlabeled", 8)),
        unlabeled_weight=2.0,
        pseudo_labels=make_pseudo_labels(found, range(1), STEPS, augment=flips, weight=0.5),
    )


def run(rank: int, folder: Path, port: int) -> None:
    """Train as one of two ranks, and leave what came of it in rank0.pt and rank1.pt."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    try:
        trainer = make_equal(folder / "equal")
        trainer.run()
        torch.save({**_facts(trainer), "rank": trainer.accelerator.process_index}, folder / f"equal{rank}.pt")
        torch.save(_cut_and_resume(rank, folder), folder / f"ordinary{rank}.pt")
    finally:
        dist.destroy_process_group()


def _facts(trainer: Trainer) -> dict:
    return {
        "student": trainer.student.state_dict(),
        "ema": trainer.ema.module.state_dict(),
        "weight": trainer.modulation.weight,
        "position": vars(trainer.position),
        "pseudo_labels": trainer.pseudo_labels.state_dict(),
    }


def _cut_and_resume(rank: int, folder: Path) -> dict:
    """Batch norm, denoising, everything; a NaN on rank 1 only, Ctrl-C on rank 0 only."""
    split = write_images(folder / "images", 12, empty=(0, 1, 2))
    # The first epoch is the best: refinement begins with weights that only rank 0 reads.
    plan = make_plan(epochs=3, steps_per_epoch=3, refine_from=2)

    def make(out: str, *, interrupted: bool = False, disturbed: bool = True) -> Trainer:
        pseudo = make_pseudo_labels(split, range(2, 3), steps_per_epoch=3)
        trainer, calls = make_trainer(split, folder / out, plan=plan, pseudo_labels=pseudo), []
        trainer.evaluate = lambda detector: fixed_score(detector, 1 / trainer.ema.num_updates)

        def disturb(module, inputs):
            calls.append(inputs)
            if rank == 0 and interrupted and len(calls) == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return inputs[0] * (torch.nan if rank == 1 and len(calls) == 2 else 1), *inputs[1:]

        if disturbed:
            trainer.student.detector.backbone.register_forward_pre_hook(disturb)
        return trainer

    make("whole").run()
    with pytest.raises(KeyboardInterrupt, match="epoch 2 of 3 after 2 of 3 steps"):
        make("cut", interrupted=True).run()
    dist.barrier()  # rank 0 may still be writing
    resumed = make("cut", disturbed=False)
    resumed.run(resume=folder / "cut" / "last.pt")
    dist.barrier()
    if rank == 0:
        assert_same(load_checkpoint(folder / "cut" / "last.pt"), load_checkpoint(folder / "whole" / "last.pt"))
    return _facts(resumed)
