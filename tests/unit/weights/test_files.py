"""Files that are no weights say so, and nothing in them is executed."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rtdetrv4.assembly import create_model
from rtdetrv4.config import VARIANTS
from rtdetrv4.errors import WeightsError
from rtdetrv4.outputs import write_whole
from rtdetrv4.weights import find_weights, read_checkpoint, read_metadata, save_weights, to_released
from rtdetrv4.weights.catalog import COCO, MODELS, fitting_models
from rtdetrv4.weights.files import add_facts, names_weights


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, (str(self.path), "w"))  # type: ignore[return-value]


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match=r"not loaded: it holds Python objects \((_io|io)\.open\).*run any code"):
        read_metadata(tmp_path / "trap.pth")
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    with pytest.raises(WeightsError, match="not a checkpoint"):
        read_metadata(tmp_path / "bare.pkl")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"hello world, this is text", "not a checkpoint|damaged"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
def test_what_is_not_a_checkpoint(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_metadata(tmp_path / name)


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(
        WeightsError, match=r"no weights of a detector: its tensors are named conv1\.weight and fc\.bias"
    ):
        read_metadata(tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds a list, expected a dictionary"):
        read_metadata(tmp_path / "list.pth")
    safetensors.torch.save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="has no tensors"):
        read_metadata(tmp_path / "none.safetensors")
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match="is an exported model"):
        read_metadata(tmp_path / "w.onnx")


def test_what_stands_for_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "stopped", "rtdetrv4-s", "other", "hub"):
        (tmp_path / name).mkdir()
    for file in ("run/weights.safetensors", "stopped/recipe.yaml", "rtdetrv4-s/weights.safetensors"):
        (tmp_path / file).touch()
    for file in ("model.safetensors", "config.json"):
        (tmp_path / "hub" / file).touch()
    assert all(names_weights(each) for each in ("w.pt", Path("w.safetensors"), "run", tmp_path / "stopped", "hub"))
    assert not any(names_weights(each) for each in ("rtdetrv4-s", "other", "w.onnx", "mine.yaml", "", None, object()))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is a folder without weights; give a file of weights, or the folder of a"):
        find_weights(tmp_path)
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(WeightsError, match=r"The run in .* has saved no weights yet: there is no weights\.safetensors"):
        find_weights(tmp_path)
    (tmp_path / "weights.safetensors").touch()
    assert find_weights(tmp_path) == tmp_path / "weights.safetensors"
    with pytest.raises(WeightsError, match=r'no file .*weigths\.safetensors\. Did you mean "weights\.safetensors"'):
        find_weights(tmp_path / "weigths.safetensors")
    with pytest.raises(WeightsError, match=r'"rtdetrv4-s" is a model.*download https://drive.*model="rtdetrv4-s"'):
        find_weights("rtdetrv4-s")
    with pytest.raises(WeightsError, match=r'download \S+dfine_s_obj365\.pth and give the path.*model="dfine-s"'):
        find_weights("dfine-s-obj365")
    with pytest.raises(WeightsError, match=r'"rtdetrv4-n" is a model.*no release of its weights is known'):
        find_weights("rtdetrv4-n")
    with pytest.raises(WeightsError, match="is not fetched; download it"):
        find_weights("https://example.org/w.pth")
    with pytest.raises(WeightsError, match="There is no file"):
        find_weights(tmp_path / "nowhere" / "w.pth")


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask")
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    private = tmp_path / "private"
    private.touch(mode=0o600)
    (tmp_path / ".copy.tmp").touch(mode=0o600)  # left behind by a process that died
    save_weights({"a": torch.zeros(1)}, tmp_path / "weights.safetensors", {})
    write_whole(tmp_path / "last.pt", lambda path: torch.save({}, path))
    write_whole(tmp_path / "copy", lambda path: shutil.copy(private, path))  # with its mode
    for name in ("weights.safetensors", "last.pt", "copy"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask, name


def test_facts_are_added_and_tensors_stay(tmp_path: Path) -> None:
    path, model = tmp_path / "weights.safetensors", create_model("test", 2)
    save_weights(model.state_dict(), path, {"model": "test", "names": ["Fuß", "手"], "confidence": 0.1})
    assert read_metadata(path).thresholds is None
    add_facts(path, {"thresholds": {"Fuß": 0.25, "手": 0.5}, "confidence": 0.4})
    metadata, tensors = read_checkpoint(path)
    assert metadata.thresholds == {"Fuß": 0.25, "手": 0.5}
    assert metadata.facts == {
        "model": "test", "names": ["Fuß", "手"], "confidence": 0.4, "thresholds": metadata.thresholds
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is damaged"):
        add_facts(path, {})
    assert path.read_bytes() == b"damaged"


def test_weights_of_a_training_that_diverged(tmp_path: Path) -> None:
    path, state = tmp_path / "weights.safetensors", create_model("test", 2).state_dict()
    save_weights({**state, "decoder.anchors": torch.full((2, 4), torch.inf)}, path, {"model": "test"})
    read_checkpoint(path)
    state["query_selection.score_head.bias"][1] = torch.nan
    save_weights(state, path, {"model": "test"})
    message = rf"1 of its {len(state)} tensors hold NaN \(query_selection\.score_head\.bias\).*has diverged"
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


def test_models_that_cannot_be_told_apart(tmp_path: Path) -> None:
    torch.save(to_released(create_model("deim-n")), tmp_path / "w.pth")
    facts = read_metadata(tmp_path / "w.pth")
    assert facts.models == ("rtdetrv4-n", "deim-n", "dfine-n")
    with pytest.raises(WeightsError, match=r'fits rtdetrv4-n, deim-n or dfine-n.*model="rtdetrv4-n"'):
        _ = facts.model


def test_every_model_is_known_by_its_tensors() -> None:
    with torch.device("meta"):
        for num_classes, (name, variant) in enumerate(VARIANTS.items(), start=1):
            shapes = {key: tensor.shape for key, tensor in create_model(name, num_classes).state_dict().items()}
            fitting = fitting_models(shapes)
            assert name in fitting
            if name.startswith("deimv2-"):
                assert fitting == (name,)
            elif variant.head == "distribution" and name != "test":
                with_projector = fitting_models({**shapes, "injector.projector.weight": (768, variant.hidden_dim)})
                assert with_projector == (f"rtdetrv4-{name[-1]}",)
    assert set(VARIANTS) == MODELS


def test_coco() -> None:
    """Against torchvision's list, which has a place for every id."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    expected = {name: number for number, name in enumerate(categories) if name not in ("__background__", "N/A")}
    assert dict(zip(COCO.names, COCO.category_ids, strict=True)) == expected
