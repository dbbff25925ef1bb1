"""The smallest exported model whose answer is known, for tests of what runs it.

It finds one box, the middle of the image from a quarter to three quarters of its width, with the mean red, green and
blue as logits of its three classes.
"""

from __future__ import annotations

from rtdetrv4.runtime import ExportMetadata

METADATA = ExportMetadata(
    model="test",
    names=("red", "green", "blue"),
    category_ids=(1, 2, 3),
    image_size=(32, 64),
    outputs="raw",
    version="0.1.0",
)
GRAPH = """
    <ir_version: 8, opset_import: ["" : 18]>
    graph (float[{batch}, 3, 32, 64] images) => (float[{batch}, 1, 3] logits, float[{batch}, 1, 4] boxes)
    <int64[2] space = {{2, 3}}, float[4] box = {{0.5, 0.5, 0.5, 1.0}}, int64[1] query = {{1}}, int64[1] first = {{0}},
     int64[1] one = {{1}}, int64[1] last = {{2}}>
    {{
        mean = ReduceMean<keepdims=0>(images, space)
        logits = Unsqueeze(mean, query)
        zeros = Sub(logits, logits)
        column = Slice(zeros, first, one, last)
        boxes = Add(column, box)
    }}
"""
"""For `onnx.parser`, with the batch size to fill in."""
