"""The report on an export that never was."""

from __future__ import annotations

from rtdetrv4.runtime.export_report import Accuracy, ExpectedScene, ExportReport, Latency

REPORT = ExportReport(
    file="w.onnx",
    format="onnx",
    precision="fp16",
    model="rtdetrv4-s",
    runtime="ONNX Runtime 1.30 on CPU",
    image_size=(640, 640),
    batches=(1, 2, 7),
    num_images=10,
    num_detections=3000,
    num_moved=2,
    num_undecided=1,
    max_box_px=0.01,
    max_score=1e-5,
    num_confident=40,
    matched=0.975,
    accuracy=Accuracy("datasets/é", "val", 20, 0.53, 0.88, 0.5325, 0.889),
    latency=Latency(1, 12.5, 14.0, 30),
    torch_latency=Latency(1, 25.0, 26.0, 30),
    size_bytes=20_000_000,
    machine="a processor, 2 cores",
    versions={"rtdetrv4": "0.1.0"},
    notes=("a note",),
    expected=(ExpectedScene(0, "abc", (0.9, 0.5), (1, 0), ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0))),),
)
