"""Detect with a Triton server: python examples/triton/client.py localhost:8001 weights photos/."""

import sys
from collections.abc import Sequence

import numpy as np
import tritonclient.grpc as triton

from rtdetrv4.runtime import ExportMetadata, preprocess, read_source
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.types import ClassMap

server, model, source = sys.argv[1:]
client = triton.InferenceServerClient(server)
parameters = client.get_model_config(model).config.parameters
metadata = ExportMetadata.from_json(parameters["rtdetrv4"].string_value)


def run(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    given = triton.InferInput("images", [len(images), 3, *metadata.image_size], "FP32")
    given.set_data_from_numpy(preprocess(images, metadata.image_size, metadata.resize))
    found = client.infer(model, [given])
    return found.as_numpy("scores"), found.as_numpy("labels"), found.as_numpy("boxes")


for detections in detect(
    read_source(source),
    run,
    classes=ClassMap(metadata.names, metadata.category_ids),
    size_hw=metadata.image_size,
    mode=metadata.resize,
    batch=1,
    selection=Selection(metadata.names, conf=0.4),
):
    for xyxy, confidence, _, name in detections:
        print(detections.path, name, f"{confidence:.2f}", xyxy.round().tolist())
