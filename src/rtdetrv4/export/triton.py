"""Model repositories for Triton: NAME_triton/NAME/ with 1/model.onnx, config.pbtxt and labels.txt.

The configuration repeats what the graph says of its inputs and outputs, so that a server that was told not to guess
(`--disable-auto-complete-config`) takes it. The metadata are in it too, because clients can ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rtdetrv4.errors import require
from rtdetrv4.export import onnx
from rtdetrv4.export.deployment import Deployment
from rtdetrv4.export.formats import FORMATS
from rtdetrv4.outputs import write_text
from rtdetrv4.runtime.export_metadata import METADATA_KEY

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

MAX_BATCH, MAX_DELAY_US, MAX_QUEUE = 8, 2000, 64
"""The most images per run, how long a request waits for others, and how many wait before further ones are refused."""
TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "INT64": "INT64", "INT32": "INT32", "UINT8": "UINT8"}
"""Triton's names of ONNX's types."""


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write the folder `path`.

    Returns:
        Notes for the report.

    Raises:
        ExportError: int8 costs more than it may.
    """
    metadata = deployment.metadata
    folder = path / (path.name.removesuffix(FORMATS["triton"].ending) or "model")
    file = folder / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    notes = onnx.write(deployment, file)
    graph = require("onnx", "export").load(file, load_external_data=False).graph
    write_text(folder / "config.pbtxt", configuration(graph, metadata.batch, metadata.to_json()))
    write_text(folder / "labels.txt", "".join(f"{' '.join(name.split())}\n" for name in metadata.names))
    return (*notes, "run in ONNX Runtime, not in Triton")


def configuration(graph: GraphProto, batch: int | None, metadata: str) -> str:
    """The content of config.pbtxt.

    Args:
        graph: the inputs and outputs of the file.
        batch: the only batch size that it accepts; None for any, of which Triton then makes batches.
        metadata: as `ExportMetadata.to_json` returns them.
    """
    batching = (
        "# Every request is one batch of the size that the file accepts.\nmax_batch_size: 0\n"
        if batch is not None
        else f"""\
# Requests that come together are joined. The first dimension, of the batch, is not in dims.
max_batch_size: {MAX_BATCH}
dynamic_batching {{
  max_queue_delay_microseconds: {MAX_DELAY_US}
  default_queue_policy {{ max_queue_size: {MAX_QUEUE} }}
}}
"""
    )
    return f"""\
# Written by rtdetrv4. https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
backend: "onnxruntime"
{batching}\
# One copy of the model on each GPU, or one on the CPU.
instance_group [ {{ kind: KIND_AUTO, count: 1 }} ]
input [
{_tensors(graph.input, batch is None)}
]
output [
{_tensors(graph.output, batch is None)}
]
# What clients need to know: class names, and how to prepare images.
parameters {{ key: "{METADATA_KEY}" value {{ string_value: "{_escaped(metadata)}" }} }}
"""


def _tensors(values: Iterable[ValueInfoProto], without_batch: bool) -> str:
    proto = require("onnx", "export").TensorProto
    lines: list[str] = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim][without_batch:]
        data_type = TYPES[proto.DataType.Name(tensor.elem_type)]
        dims = ", ".join(map(str, sizes))
        lines.append(f'  {{ name: "{value.name}", data_type: TYPE_{data_type}, dims: [ {dims} ] }}')
    return ",\n".join(lines)


def _escaped(text: str) -> str:
    """A text of one line as it is between the quotes of protobuf's text format."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
