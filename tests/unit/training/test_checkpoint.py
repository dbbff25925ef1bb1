from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from rtdetrv4.errors import WeightsError
from rtdetrv4.training import checkpoint
from rtdetrv4.training.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from rtdetrv4.weights import save_weights

CPU = torch.device("cpu")


def draw() -> tuple[float, ...]:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()


def test_a_state_comes_back_without_unpickling_code(tmp_path):
    state = {"weights": {"w": torch.arange(3.0)}, "position": {"epoch": 3, "best": None}, "rng": [rng_state(CPU)]}
    save_checkpoint(state, tmp_path / "new" / "last.pt")
    loaded = load_checkpoint(tmp_path / "new" / "last.pt")  # weights_only inside
    assert torch.equal(loaded["weights"]["w"], state["weights"]["w"])
    assert loaded["position"] == state["position"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.pt"]


def test_random_generators_go_on_where_they_were(tmp_path):
    draw()
    save_checkpoint({"rng": rng_state(CPU)}, tmp_path / "last.pt")
    expected = draw()
    assert draw() != expected
    set_rng_state(load_checkpoint(tmp_path / "last.pt")["rng"], CPU)
    assert draw() == expected


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint({"epoch": 1}, path)

    def crash(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["missing", "nothing", "text", "pickle", "other"])
def test_what_is_no_checkpoint_is_refused_with_a_reason(tmp_path, content, capsys):
    path = tmp_path / "last.pt"
    if content == "nothing":
        path.touch()
    elif content == "text":
        path.write_text("not a checkpoint")
    elif content == "pickle":
        torch.save({"format": 1, "evil": Evil()}, path, pickle_module=pickle)
    elif content == "other":
        torch.save({"model": torch.zeros(1)}, path)
    message = {
        "missing": "does not exist",
        "nothing": "is damaged or cut off",
        "text": "is damaged or cut off",
        "pickle": "cannot be read",
        "other": "format None",
    }
    with pytest.raises(WeightsError, match=message[content]):
        load_checkpoint(path)
    assert capsys.readouterr().out == ""


def test_an_error_without_a_message_is_named_by_its_class(tmp_path, monkeypatch):
    def fail(path, **options):
        raise EOFError

    save_checkpoint({}, tmp_path / "last.pt")
    monkeypatch.setattr(checkpoint.torch, "load", fail)
    with pytest.raises(WeightsError, match=r"is damaged or cut off \(EOFError\)"):
        load_checkpoint(tmp_path / "last.pt")


def test_weights_carry_what_is_needed_to_use_them(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight  # shared
    path = tmp_path / "weights.safetensors"
    save_weights(model.state_dict(), path, {"names": ["Fuß", "手"], "trained": True})
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["rtdetrv4"]) == {"names": ["Fuß", "手"], "trained": True}
        assert set(file.keys()) == set(model.state_dict())
        assert torch.equal(file.get_tensor("0.weight"), model[0].weight)
