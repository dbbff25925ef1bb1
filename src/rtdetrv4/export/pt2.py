"""Programs of torch.export: NAME.pt2."""

from __future__ import annotations

from pathlib import Path

import torch

from rtdetrv4.export.deployment import Deployment, quiet
from rtdetrv4.runtime.export_metadata import METADATA_KEY


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write NAME.pt2."""
    module, metadata = deployment.module.eval(), deployment.metadata
    # torch.export treats a batch of 1 as constant, even if its dimension is declared dynamic.
    images = module.example(metadata.batch or 2, metadata.image_size)
    shapes = {"images": {0: torch.export.Dim("batch")} if metadata.batch is None else {}}
    with torch.no_grad(), quiet():
        program = torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
        torch.export.save(program, path, extra_files={METADATA_KEY: metadata.to_json()})
    return ()
