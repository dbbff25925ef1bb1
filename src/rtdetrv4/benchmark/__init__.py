"""How fast exported models run here: latency and throughput, side by side, and against accuracy. No torch."""

from rtdetrv4.benchmark.picture import draw_benchmark
from rtdetrv4.benchmark.result import Benchmark, Row
from rtdetrv4.benchmark.run import BENCHMARK_FILES, run_benchmark

__all__ = ["BENCHMARK_FILES", "Benchmark", "Row", "draw_benchmark", "run_benchmark"]
