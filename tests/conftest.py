"""What every test may use."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from local_hub import LocalHub

# Small tensors gain nothing from threads, and sums must not depend on the number of cores; also for subprocesses.
# RTDETRV4_TEST_THREADS=2 shows that the tests hold with more, see CONTRIBUTING.md.
os.environ["OMP_NUM_THREADS"] = os.environ.get("RTDETRV4_TEST_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# `amp: auto` is float32 on every processor then, also in subprocesses; `make isa` tries older instructions.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
# Numbers are compared with those of a CPU, also where there is a GPU; `make gpu` runs the tests of tests/gpu on it.
if "RTDETRV4_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# A shell has what it starts in the background ignore Ctrl-C, which tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples on every machine. RTDETRV4_MUTATIONS searches for new ones, see CONTRIBUTING.md.
# No example may fail because the machine is busy.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default" if "RTDETRV4_MUTATIONS" in os.environ else "same")


@pytest.fixture(autouse=True)
def _same_random_state() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here, and a shared disk takes seconds for a checkpoint."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True, scope="session")
def _no_notes_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests export is noted among them alone."""
    folder = tmp_path_factory.getbasetemp() / "exported"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdetrv4.runtime.trust.own_folder", lambda: folder)
        yield


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub on this machine, which the client asks in place of the real one, with an empty cache."""
    from local_hub import running_hub, use_hub

    with running_hub() as hub:
        use_hub(hub.endpoint, tmp_path / "cache", monkeypatch)
        yield hub


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config) -> Path:
    """Real data beside the checkout, which is no part of the project."""
    folder = pytestconfig.rootpath.parent / "shared"
    if not folder.is_dir():
        pytest.skip("there is no folder `shared` beside the checkout")
    return folder
