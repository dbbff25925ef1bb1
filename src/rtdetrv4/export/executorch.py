"""Programs of ExecuTorch for phones and other small devices: NAME.pte, with its metadata in NAME.json."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from rtdetrv4.export.deployment import Deployment, quiet
from rtdetrv4.outputs import write_text


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write NAME.pte for the processor: what XNNPACK can, it computes."""
    exir = importlib.import_module("executorch.exir")
    xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    module, metadata = deployment.module.eval(), deployment.metadata
    assert metadata.batch is not None
    with torch.no_grad(), quiet():
        program = torch.export.export(module, (module.example(metadata.batch, metadata.image_size),), strict=False)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
    write_text(path.with_suffix(".json"), metadata.to_json() + "\n")
    return ("computed by XNNPACK where it can",)
