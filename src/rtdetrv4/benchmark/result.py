"""The results of a benchmark."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A model in a runtime, with one choice of batch, threads and hint. Times are those of a batch, in milliseconds."""

    file: str
    runtime: str
    """With its version, and what it runs on."""
    image_size: tuple[int, int]
    batch: int
    threads: int | None
    """None: as many as the runtime takes by itself."""
    hint: str
    """"latency", or "throughput": several batches at once."""
    num_parallel: int
    """Batches at once."""
    median_ms: float
    """Of the network alone."""
    p95_ms: float
    """One run in twenty took longer."""
    least_ms: float
    images_per_second: float
    num_runs: int
    preprocess_ms: float | None
    """Of frames of 1280×720 to the input; None for models of other programs."""
    postprocess_ms: float | None
    """From the outputs to `Detections`."""
    precision: str | None
    """Of the file; None if it does not say."""
    ap: float | None
    """COCO's AP on `Benchmark.data` in this runtime, or that of the file's report; None if it is not known."""
    size_mb: float


class Benchmark(NamedTuple):
    """What was timed on one machine, interleaved."""

    rows: tuple[Row, ...]
    machine: str
    data: str | None
    """What AP was measured on now; None: it is that of the files' reports."""
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def to_json(self) -> str:
        """Return the content of bench.json."""
        content: dict[str, Any] = self._asdict() | {"rows": [row._asdict() for row in self.rows]}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
