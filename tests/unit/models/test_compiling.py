"""torch.compile, where it works and where it does not."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdetrv4.models import DetectionModel, compile_parts
from rtdetrv4.types import Targets
from small_training import ROUNDING, assert_same, make_detector

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
TARGETS = Targets.of([(torch.tensor([0, 2]), torch.full((2, 4), 0.4)), (torch.tensor([1]), torch.full((1, 4), 0.5))])


def gradients(model: DetectionModel) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(3)
    logits = model.train()(IMAGES, TARGETS).training.queries.logits
    model.zero_grad()
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("default")  # torch's compiler has its own deprecations
def test_compiled_parts_compute_the_same_and_copies_are_not_compiled() -> None:
    plain = make_detector()
    compiled = copy.deepcopy(plain)
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        calls.append(len(inputs))
        return graph.forward

    compile_parts(compiled, backend)
    assert_same(gradients(compiled), gradients(plain), rounding=ROUNDING)
    assert len(calls) == 2  # a graph for each part, in one piece
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert_same(compiled.state_dict(), plain.state_dict(), rounding=ROUNDING)
    average = copy.deepcopy(compiled).eval()
    num_calls = len(calls)
    with torch.no_grad():
        assert_same(average(IMAGES).logits, plain.eval()(IMAGES).logits, rounding=ROUNDING)
    assert len(calls) == num_calls


@pytest.mark.filterwarnings("default")
def test_where_compiling_fails_training_goes_on_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    plain = make_detector()
    broken = copy.deepcopy(plain)

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise OSError("no C++ compiler")

    compile_parts(broken, backend)
    with caplog.at_level(logging.WARNING, logger="rtdetrv4"):
        for _ in range(2):
            assert_same(gradients(broken), gradients(plain), rounding=ROUNDING)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("rtdetrv4")]
    assert len(warnings) == 1
    assert "torch.compile failed" in warnings[0]
    assert "no C++ compiler" in warnings[0]
    assert_same(broken.state_dict(), plain.state_dict(), rounding=ROUNDING)


@pytest.mark.filterwarnings("default")
def test_what_runs_out_of_memory_stays_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """A smaller part of the batch may fit."""
    plain = make_detector()
    model = copy.deepcopy(plain)
    is_full = True

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            if is_full:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return graph.forward(*args)

        return run

    compile_parts(model, backend)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        gradients(model)
    is_full = False
    assert_same(gradients(model), gradients(plain), rounding=ROUNDING)
    assert not [record for record in caplog.records if record.name.startswith("rtdetrv4")]


def test_mistakes_of_the_caller_are_not_hidden() -> None:
    model = make_detector()
    compile_parts(model, "eager")
    with pytest.raises(TypeError):
        model.backbone("no tensor")
