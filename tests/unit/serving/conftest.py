"""The smallest exported model, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdetrv4.serving import Network
from running_server import write_color_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_model(tmp_path_factory.mktemp("model") / "color.onnx")


@pytest.fixture(scope="session")
def network(model_path: Path) -> Network:
    return Network.of_file(model_path, max_batch=4, threads=1)
