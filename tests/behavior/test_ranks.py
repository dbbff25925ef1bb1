"""Two processes train as one does: gloo on the CPU."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp

import two_ranks
from rtdetrv4.data.synthetic import write_shapes
from rtdetrv4.training.checkpoint import load_checkpoint
from small_training import assert_same


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    mp.spawn(two_ranks.run, (folder, port), nprocs=2)
    return folder


def load(folder, name):
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_are_one_with_twice_the_batch(folder, tmp_path):
    first, second = load(folder, "equal")
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert_same(first, second)
    alone = two_ranks.make_equal(tmp_path)
    before = {name: tensor.clone() for name, tensor in alone.student.state_dict().items()}
    alone.run()
    assert first["weight"] == pytest.approx(alone.modulation.weight, rel=1e-5)
    assert first["weight"] != 5.0
    assert_same(first["pseudo_labels"], alone.pseudo_labels.state_dict())
    assert len(first["pseudo_labels"]["counts"]) == 11
    for name, tensor in alone.student.state_dict().items():
        torch.testing.assert_close(first["student"][name], tensor, rtol=0, atol=1e-5, msg=name)
    moved = max((before[name] - tensor).abs().max().item() for name, tensor in first["student"].items())
    assert moved > 1e-3


def test_ranks_agree_on_bad_steps_on_stopping_and_on_lambda(folder):
    # Ctrl-C on one rank stopped both after the same step (two_ranks.py), and resuming repeats the run bit for bit.
    first, second = load(folder, "ordinary")
    assert first["position"] == second["position"]
    assert first["position"]["num_skipped"] == 1
    assert_same(first["pseudo_labels"], second["pseudo_labels"])
    assert len(first["pseudo_labels"]["counts"]) > 4
    assert first["weight"] == second["weight"]
    assert_same(first["ema"], second["ema"])  # what is evaluated: batch norm statistics too
    parameters = [name for name in first["student"] if "running" not in name]
    assert_same(*({name: facts["student"][name] for name in parameters} for facts in (first, second)))


def test_each_rank_has_its_own_random_state(folder):
    state = load_checkpoint(folder / "cut" / "last.pt")
    first, second = state["rng"]
    assert not torch.equal(first["torch"], second["torch"])


def test_one_rank_speaks(tmp_path):
    shapes = write_shapes(tmp_path / "shapes", num_train=8, num_val=4, image_size=64)
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module", "rtdetrv4.cli"]
    settings = [
        "--epochs",
        "1",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--tracker",
        "none",
        "--set",
        "schedule.flat_epoch=1",
    ]
    train = ["train", "--data", str(shapes), "--model", "test", "--out", str(tmp_path / "run"), *settings]
    done = subprocess.run([sys.executable, *ranks, *train], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Weights: ") == 1
    assert done.stdout.count(" ap50 ") == 1
