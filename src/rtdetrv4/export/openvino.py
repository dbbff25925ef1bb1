"""OpenVINO's folders: NAME_openvino/ with NAME.xml, NAME.bin and metadata.json."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rtdetrv4.errors import require
from rtdetrv4.export.deployment import Deployment
from rtdetrv4.export.formats import FORMATS
from rtdetrv4.outputs import write_text
from rtdetrv4.runtime.engines.engine import METADATA_FILE


def write(deployment: Deployment, path: Path) -> tuple[str, ...]:
    """Write the folder `path`.

    fp16 halves the file: weights are in float16, and the processor computes in float32 unless it is told otherwise.
    bf16 is the float32 file with a note for whoever runs it.

    Returns:
        Notes for the report.

    Raises:
        ExportError: int8 costs more than it may.
    """
    openvino = require("openvino", "openvino")
    onnx = require("onnx", "export")
    file = path / f"{path.name.removesuffix(FORMATS['openvino'].ending)}.xml"
    path.mkdir()
    write_text(path / METADATA_FILE, deployment.metadata.to_json() + "\n")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "float.onnx"
        onnx.save(deployment.graph, source)
        if deployment.precision == "int8":
            from rtdetrv4.export.int8 import quantize_openvino

            return deployment.quantize(quantize_openvino, source, file)
        model = openvino.convert_model(source)
        openvino.save_model(model, file, compress_to_fp16=deployment.precision == "fp16")
    return ("weights in float16, computed in float32 on a CPU",) if deployment.precision == "fp16" else ()
