"""Run a function on an NVIDIA GPU without launching its kernels one by one."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rtdetrv4.errors import first_line
from rtdetrv4.ops.device import is_out_of_memory

logger: logging.Logger = logging.getLogger(__name__)

Function = Callable[[Tensor], tuple[Tensor, ...]]
Key = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    input: Tensor
    outputs: tuple[Tensor, ...]


class CudaGraphs:
    """A function of a tensor whose kernels are recorded for each shape of it, and from then on replayed.

    A detector of this family is 600 to 1,000 small operations. A fast GPU computes them in less time than the processor
    needs to launch them; replaying a recording is one launch. On other devices, and with a shape that comes for the
    first time, the function is called as it is.

    Args:
        function: from one tensor to several. Its kernels may depend on the shape of the tensor alone, and it may not
            wait for the GPU: what cannot be recorded is called each time. What it reads besides, such as the weights
            of a network, is read anew by every replay, but must stay where it is in memory.
        most: recordings that are kept, each of which takes the memory of its results.
    """

    def __init__(self, function: Function, most: int = 8) -> None:
        self._function = function
        self._most = most
        self._recordings: OrderedDict[Key, _Recording | None] = OrderedDict()
        """None for a shape that has come once."""
        self._gives_up = False
        self._pool: Any = None
        """Memory that the recordings share: no two of them run at once."""
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The function's results, which later calls do not overwrite."""
        if x.device.type != "cuda" or self._gives_up:
            return self._function(x)
        key = (x.shape, x.stride(), x.dtype, x.device)
        with self._lock:
            if key not in self._recordings:
                self._keep(key, None)
                return self._function(x)
            recording = self._recordings[key] or self._record(key, x)
            if recording is None:
                return self._function(x)
            self._recordings.move_to_end(key)
            recording.input.copy_(x)
            recording.graph.replay()
            return tuple(output.clone() for output in recording.outputs)

    def _record(self, key: Key, x: Tensor) -> _Recording | None:
        own, graph = x.clone(), torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # Other threads may allocate memory meanwhile.
            with torch.cuda.device(x.device), torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                outputs = self._function(own)
        except RuntimeError as error:
            self._gives_up = True
            told = logger.warning if is_out_of_memory(error) else logger.debug
            told("The kernels of the network could not be recorded, and are launched one by one: %s", first_line(error))
            return None
        recording = _Recording(graph, own, outputs)
        self._keep(key, recording)
        return recording

    def _keep(self, key: Key, recording: _Recording | None) -> None:
        self._recordings[key] = recording
        while len(self._recordings) > self._most:
            self._recordings.popitem(last=False)
