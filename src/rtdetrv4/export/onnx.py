"""ONNX files that carry everything needed to use them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rtdetrv4.errors import ExportError, require
from rtdetrv4.export.deployment import Deployment, DeploymentModule, quiet
from rtdetrv4.export.graph import pad_in_pools
from rtdetrv4.runtime.export_metadata import METADATA_KEY

if TYPE_CHECKING:
    import onnx

OPSETS = range(18, 24)
"""Since opset 17 a layer norm is one operator; its decomposition overflows in float16 and loses detections."""


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write NAME.onnx.

    Returns:
        Notes for the report.

    Raises:
        ExportError: int8 costs more than it may.
    """
    if deployment.precision == "fp32":
        require("onnx", "export").save(deployment.graph, path)
        return ()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "float.onnx"
        require("onnx", "export").save(deployment.graph, source)
        if deployment.precision == "fp16":
            from rtdetrv4.export.half import half_onnx

            halved = half_onnx(source, path)
            return (f"{halved.num_half} operators in float16, {halved.num_full} in float32",)
        from rtdetrv4.export.int8 import quantize_onnx

        return deployment.quantize(quantize_onnx, source, path)


def trace_graph(deployment: Deployment) -> onnx.ModelProto:
    """The graph of a deployment, in float32, with its metadata."""
    metadata = deployment.metadata
    graph = _trace(deployment.module, metadata.image_size, deployment.opset, metadata.batch)
    if deployment.simplify:
        graph = require("onnxslim", "export").slim(graph)
        pad_in_pools(graph)
    _finish(graph, {METADATA_KEY: metadata._replace(precision="fp32").to_json(), **deployment.facts})
    return graph


def _trace(module: DeploymentModule, image_size: tuple[int, int], opset: int, batch: int | None) -> onnx.ModelProto:
    """Trace the graph with torch.export; docs/adr/0007-onnx-exporter.md says why not with TorchScript."""
    require("onnxscript", "export")
    # torch.export treats a batch of 1 as constant, even if its dimension is declared dynamic.
    images = module.example(batch or 2, image_size)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            module.eval(),
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=[module.input_name],
            output_names=list(module.output_names),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")} if batch is None else {}},
            verbose=False,
        )
    assert program is not None
    graph: Any = program.model_proto
    found = next(entry.version for entry in graph.opset_import if not entry.domain)
    if found != opset:
        raise ExportError(f"This model cannot be exported with opset {opset}; use opset {found}.")
    return graph


def _finish(graph: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Replace the exporter's notes on this machine's source files with the entries that users of the file need."""
    onnx = require("onnx", "export")
    for item in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    del graph.graph.metadata_props[:]
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(entries))
    # The oldest version that has the operators; the exporter writes its newest, which older runtimes refuse to read.
    graph.ir_version = onnx.helper.find_min_ir_version_for(list(graph.opset_import))
    onnx.checker.check_model(graph)
