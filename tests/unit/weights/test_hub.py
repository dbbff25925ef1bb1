"""Trained weights by name, with huggingface_hub's own client and a hub on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from local_hub import COMMIT, LocalHub, Served, running_hub, use_hub
from rtdetrv4.assembly import create_model
from rtdetrv4.errors import WeightsError
from rtdetrv4.ops import hub as client
from rtdetrv4.weights import find_weights, save_transformers
from rtdetrv4.weights import hub as weights_hub
from rtdetrv4.weights.catalog import COCO, HUB_FILES, MODELS, HubFile
from rtdetrv4.weights.files import read_checkpoint
from rtdetrv4.weights.hub import fetch_file, fetch_weights, find_cached

CONTENT = bytes(range(256)) * 8
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PINNED = HubFile("first/detector", "weights.pt", sha256=SHA256, size_mb=0.002)
OTHER = HubFile("second/detector", "v4/weights.pth")
PRETRAINED = HubFile("first/pretrained", "weights.pt")


@pytest.fixture
def hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    table = {"rtdetrv4-s": {"coco": (PINNED, OTHER), "obj365": (PRETRAINED,)}}
    monkeypatch.setattr(weights_hub, "HUB_FILES", table)
    hub.files = {"first/detector/weights.pt": Served(CONTENT), "second/detector/v4/weights.pth": Served(b"other")}
    return hub


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Log lines as a user sees them: the client prints its own, and the root logger prints what reaches it."""
    client = logging.getLogger("huggingface_hub")
    client.addHandler(caplog.handler)
    yield caplog
    client.removeHandler(caplog.handler)


def _cached_bytes() -> list[bytes]:
    """All whole files in the cache, whatever their names."""
    blobs = Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*")
    return [path.read_bytes() for path in blobs if path.suffix != ".incomplete"]


def test_the_first_source_is_fetched_once(hub: LocalHub) -> None:
    assert find_cached("rtdetrv4-s") is None
    assert not hub.requests
    fetched = fetch_weights("rtdetrv4-s")
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.path.is_relative_to(constants.HF_HUB_CACHE)
    assert (fetched.source, fetched.dataset, fetched.skipped) == (PINNED, "coco", ())
    assert hub.downloads() == ["first/detector/weights.pt"]
    hub.requests.clear()
    assert fetch_weights("rtdetrv4-s") == find_cached("rtdetrv4-s") == fetched
    assert not hub.requests


def test_weights_of_transformers_come_with_their_classes(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_hub, "HUB_FILES", HUB_FILES)
    folder = Path(constants.HF_HUB_CACHE).with_name("written")
    network = create_model("dfine-n")
    save_transformers(network, folder, COCO.names, (640, 640))
    hub.files = {f"ustc-community/dfine-nano-coco/{file.name}": Served(file.read_bytes()) for file in folder.iterdir()}
    fetched = fetch_weights("dfine-n")
    assert sorted(hub.downloads()) == [
        f"ustc-community/dfine-nano-coco/{n}" for n in ("config.json", "model.safetensors")
    ]
    metadata, tensors = read_checkpoint(fetched.path)
    assert (metadata.models, metadata.classes) == (("dfine-n",), COCO)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())


def test_a_wrong_hash_is_refused_and_the_next_source_taken(hub: LocalHub) -> None:
    fetch_file(OTHER)  # of the user's own
    hub.files["first/detector/weights.pt"] = Served(b"damaged", stated_hash=SHA256)
    hub.files["second/detector/v4/weights.pth"] = Served(b"other")
    with pytest.raises(WeightsError) as caught:
        fetch_file(PINNED)
    found = hashlib.sha256(b"damaged").hexdigest()
    assert f"arrived damaged and was removed from the cache: its SHA-256 is {found}, expected {SHA256}" in str(
        caught.value
    )
    assert _cached_bytes() == [b"other"]
    # The cache has a source, so the hub is not even asked.
    assert fetch_weights("rtdetrv4-s").source == OTHER

    hub.files["first/detector/weights.pt"] = Served(CONTENT)
    assert fetch_file(PINNED).read_bytes() == CONTENT


def test_a_hash_that_only_the_hub_knows_is_checked_too(hub: LocalHub) -> None:
    hub.files["second/detector/v4/weights.pth"] = Served(b"other", stated_hash=SHA256)
    with pytest.raises(WeightsError, match=f"second/detector/v4/weights.pth arrived damaged.*expected {SHA256}"):
        fetch_file(OTHER)
    assert _cached_bytes() == []


def test_another_file_than_the_pinned_one_is_not_downloaded(hub: LocalHub) -> None:
    hub.files["first/detector/weights.pt"] = Served(b"newer")
    fetched = fetch_weights("rtdetrv4-s")
    assert fetched.source == OTHER
    assert hub.downloads() == ["second/detector/v4/weights.pth"]
    [skipped] = fetched.skipped
    assert skipped.startswith("first/detector/weights.pt has changed: its SHA-256 is ")


def test_a_damaged_copy_in_the_cache_is_fetched_anew(hub: LocalHub) -> None:
    path = fetch_weights("rtdetrv4-s").path
    path.write_bytes(CONTENT[:-1])
    assert find_cached("rtdetrv4-s") is None
    assert fetch_weights("rtdetrv4-s").path.read_bytes() == CONTENT
    path = fetch_file(OTHER)
    path.write_bytes(b"othe")
    assert fetch_file(OTHER).read_bytes() == b"other"


def test_a_cut_download_is_resumed(hub: LocalHub, shown: pytest.LogCaptureFixture) -> None:
    hub.files["first/detector/weights.pt"].cuts = [1000]
    with contextlib.suppress(WeightsError):  # clients of today go on by themselves, older ones in the next call
        fetch_file(PINNED)
    assert fetch_file(PINNED).read_bytes() == CONTENT
    assert [request.range for request in hub.requests if request.method == "GET"] == [None, "bytes=1000-"]
    assert shown.text.count("Trying to resume") <= 1
    assert logging.getLogger("huggingface_hub").propagate


def test_a_download_that_cannot_be_resumed_leaves_nothing(hub: LocalHub) -> None:
    hub.files["first/detector/weights.pt"] = Served(CONTENT, cuts=[1000], status_after_cut=503)
    with pytest.raises(WeightsError, match=r"first/detector.*(503|peer closed|IncompleteRead)"):
        fetch_file(PINNED)
    assert _cached_bytes() == []
    hub.files["first/detector/weights.pt"] = Served(CONTENT)
    assert fetch_file(PINNED).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (None, "/first/detector has no file weights.pt"),
        (Served(b"", status=404), "/first/detector has no file weights.pt"),
        (Served(b"", status=404, error_code="RepoNotFound"), "there is no public repository .*/first/detector;"),
        (Served(b"", status=403, error_code="GatedRepo"), r"/first/detector is refused \(403\): accept its terms"),
        (Served(b"", status=403), r"/first/detector is refused \(403\).*HF_TOKEN"),
        (Served(b"", status=401), r"/first/detector is refused \(401\).*hf auth login"),
        (Served(b"", status=503), "/first/detector answers with an error .*503"),
    ],
)
def test_what_the_hub_refuses_comes_from_the_next_source(hub: LocalHub, served: Served | None, message: str) -> None:
    del hub.files["first/detector/weights.pt"]
    if served is not None:
        hub.files["first/detector/weights.pt"] = served
    fetched = fetch_weights("rtdetrv4-s")
    assert fetched.path.read_bytes() == b"other"
    assert (fetched.source, len(fetched.skipped)) == (OTHER, 1)
    assert re.search(message, fetched.skipped[0])


def test_all_sources_fail(hub: LocalHub) -> None:
    hub.files.clear()
    with pytest.raises(WeightsError) as caught:
        fetch_weights("rtdetrv4-s")
    message = str(caught.value)
    assert message.startswith("There are no coco weights of rtdetrv4-s in the cache, and none can be fetched: ")
    assert "/first/detector has no file weights.pt; " in message
    assert "/second/detector has no file v4/weights.pth. Download https://drive.google.com/" in message
    assert "\n" not in message


def test_a_token_opens_gated_repositories(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["first/detector/weights.pt"] = Served(CONTENT, status=403, error_code="GatedRepo", token="hf_mine")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert fetch_weights("rtdetrv4-s").source == PINNED


def test_large_files_are_kept_elsewhere(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with running_hub() as storage:
        storage.commit = None
        storage.files["first/detector/weights.pt"] = Served(CONTENT)
        # By another name, because some clients take all ports of a host for one place.
        elsewhere = storage.endpoint.replace("127.0.0.1", "localhost")
        place = f"{elsewhere}/first/detector/resolve/main/weights.pt"
        hub.files["first/detector/weights.pt"] = Served(CONTENT, moved_to=place)
        assert fetch_weights("rtdetrv4-s").path.read_bytes() == CONTENT
    assert [(request.method, request.token) for request in storage.requests] == [("GET", None)]
    assert {(request.method, request.token) for request in hub.requests} == {("HEAD", "Bearer hf_mine")}


def test_renamed_repositories_are_found(hub: LocalHub) -> None:
    hub.files["new/name/weights.pt"] = hub.files["first/detector/weights.pt"]
    hub.files["first/detector/weights.pt"] = Served(b"", moved_to="/new/name/resolve/main/weights.pt")
    assert fetch_file(PINNED).read_bytes() == CONTENT
    hub.files["second/detector/v4/weights.pth"] = Served(b"", moved_to="/new/name/resolve/main/other.pth")
    hub.files["new/name/other.pth"] = Served(b"damaged", stated_hash=SHA256)
    with pytest.raises(WeightsError, match=f"arrived damaged.*expected {SHA256}"):
        fetch_file(OTHER)


def test_the_next_best_data_set(hub: LocalHub) -> None:
    fetched = fetch_weights("rtdetrv4-s", "obj365", "coco")
    assert (fetched.dataset, fetched.source) == ("coco", PINNED)
    assert fetched.skipped == (f"{hub.endpoint}/first/pretrained has no file weights.pt",)
    hub.files["first/pretrained/weights.pt"] = Served(b"pretrained")
    assert fetch_weights("rtdetrv4-s", "obj365", "coco").source == PRETRAINED
    with pytest.raises(WeightsError, match="no weights of rtdetrv4-s trained on obj2coco are on the hub"):
        fetch_weights("rtdetrv4-s", "obj2coco")


def test_a_slow_download_takes_its_time(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 0.5)
    hub.files["first/detector/weights.pt"].pause = 0.01
    start = time.monotonic()
    assert fetch_weights("rtdetrv4-s").path.read_bytes() == CONTENT
    assert time.monotonic() - start > 1


def test_a_hub_that_never_answers_is_asked_once(hub: LocalHub, shown: pytest.LogCaptureFixture) -> None:
    hub.silent.set()
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        fetch_weights("rtdetrv4-s", "obj365", "coco")
    assert time.monotonic() - start < 5
    assert len(hub.requests) == 1
    assert f"{hub.endpoint} does not answer (" in str(caught.value)
    assert not shown.records


def test_what_answers_is_no_hub(hub: LocalHub) -> None:
    hub.commit = None
    with pytest.raises(WeightsError, match=r"does not answer \(something else answers in its place, perhaps a proxy"):
        fetch_weights("rtdetrv4-s")
    assert [request.method for request in hub.requests] == ["HEAD"]


def test_no_connection(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, shown: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    cache = Path(constants.HF_HUB_CACHE)
    use_hub(closed, cache, monkeypatch)
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        fetch_weights("rtdetrv4-s")
    assert time.monotonic() - start < 2
    message = str(caught.value)
    assert message.count(f"{closed} does not answer (") == 1
    assert f"Download {closed}/first/detector/resolve/main/weights.pt (0.002 MB) on another machine" in message
    assert message.endswith(f"or copy models--first--detector from the cache of that machine into {cache}.")
    assert not shown.records

    use_hub(hub.endpoint, cache, monkeypatch)
    fetched = fetch_weights("rtdetrv4-s")
    use_hub(closed, cache, monkeypatch)
    assert fetch_weights("rtdetrv4-s") == fetched
    assert fetch_file(PINNED) == fetched.path


def test_a_copied_cache_folder_is_found(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the message without a connection advises."""
    fetch_weights("rtdetrv4-s")
    use_hub("http://127.0.0.1:1", tmp_path / "offline", monkeypatch)
    (tmp_path / "offline").mkdir()
    (tmp_path / "cache/models--first--detector").rename(tmp_path / "offline/models--first--detector")
    assert fetch_weights("rtdetrv4-s").path == (
        tmp_path / "offline/models--first--detector/snapshots" / COMMIT / "weights.pt"
    )


@pytest.mark.slow
def test_the_variables_of_the_client_count(hub: LocalHub, tmp_path: Path) -> None:
    """Both are read when the client is imported, hence a process of its own."""
    script = f"""
import sys
from rtdetrv4.weights.catalog import HubFile
from rtdetrv4.weights.hub import fetch_file
from rtdetrv4.errors import WeightsError
from huggingface_hub import constants, file_download

source = HubFile("first/detector", "weights.pt", sha256="{SHA256}")
print(fetch_file(source))
constants.HF_HUB_OFFLINE = True
print(fetch_file(source))
try:
    fetch_file(HubFile("second/detector", "v4/weights.pth"))
except WeightsError as error:
    print(error)
"""
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "elsewhere")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    path = tmp_path / "elsewhere/models--first--detector/snapshots" / COMMIT / "weights.pt"
    assert done.stdout.splitlines() == [str(path), str(path), "HF_HUB_OFFLINE is set"], done.stderr
    assert {request.file for request in hub.requests} == {"first/detector/weights.pt"}


@pytest.mark.skipif(huggingface_hub.__version__.startswith("0."), reason="older clients look at it once only")
def test_offline_mode_asks_nobody(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = fetch_weights("rtdetrv4-s")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_weights("rtdetrv4-s") == fetched
    assert fetch_weights("rtdetrv4-s", "obj365", "coco") == fetched._replace(skipped=("HF_HUB_OFFLINE is set",))
    with pytest.raises(
        WeightsError, match=r"none can be fetched: HF_HUB_OFFLINE is set\. Download .*/first/pretrained/"
    ):
        fetch_weights("rtdetrv4-s", "obj365")
    assert not hub.requests


def test_addresses(hub: LocalHub) -> None:
    hub.files = {"some/one/deep/w.pth": Served(b"deep"), "some/one/model.safetensors": Served(b"tensors")}
    assert find_weights("hf://some/one/deep/w.pth").read_bytes() == b"deep"
    assert {request.revision for request in hub.requests} == {"main"}
    hub.requests.clear()
    # config.json need not be there.
    assert find_weights("hf://some/one@v2/model.safetensors").read_bytes() == b"tensors"
    assert {(request.file, request.revision) for request in hub.requests} == {
        ("some/one/model.safetensors", "v2"),
        ("some/one/config.json", "v2"),
    }
    with pytest.raises(WeightsError, match="expected hf://owner/repo/file"):
        find_weights("hf://some/one")


def test_the_newest_file_of_an_address(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"some/one/w.pth": Served(b"first")}
    assert find_weights("hf://some/one/w.pth").read_bytes() == b"first"
    hub.files, hub.commit = {"some/one/w.pth": Served(b"second")}, "2" * 40
    assert find_weights("hf://some/one/w.pth").read_bytes() == b"second"
    monkeypatch.setattr(client, "ANSWER_TIME", 0.2)
    hub.silent.set()
    assert find_weights("hf://some/one/w.pth").read_bytes() == b"second"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://some/one/w.pth", r"hf://some/one/w\.pth cannot be fetched: .*/some/one has no file w\.pth\. A file"),
        ("hf://some/one/gated.pth", r"gated\.pth cannot be fetched: access to .*/some/one is refused \(403\)"),
        ("hf://some/o..e/w.pth", r"hf://some/o\.\.e/w\.pth cannot be fetched: .*o\.\.e"),
    ],
)
def test_addresses_that_lead_nowhere(hub: LocalHub, address: str, message: str) -> None:
    hub.files = {"some/one/gated.pth": Served(b"", status=403, error_code="GatedRepo")}
    with pytest.raises(WeightsError, match=message):
        find_weights(address)


def test_the_catalog() -> None:
    assert set(HUB_FILES) <= MODELS
    files = [file for datasets in HUB_FILES.values() for sources in datasets.values() for file in sources]
    assert len(files) == len({(file.repository, file.file) for file in files}) == 38
    hashes = [file.sha256 for file in files if file.sha256]
    assert all(len(sha256) == 64 and int(sha256, 16) for sha256 in hashes)
    assert len(set(hashes)) == 6
    for model, datasets in HUB_FILES.items():
        assert datasets["coco"][0].ap is not None
        assert datasets["coco"][0].license == (None if model.startswith("deimv2-") else "Apache-2.0")


def test_weights_come_by_https_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is asked, not even for a name."""
    monkeypatch.setattr(client, "_ask", lambda url: pytest.fail("somebody is asked"))
    use_hub("http://hub.example", tmp_path / "cache", monkeypatch)
    with pytest.raises(WeightsError, match=r"the hub is http://hub\.example; weights are fetched by https only"):
        fetch_file(PINNED)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "what the hub redirects to is file://; weights are fetched by https only"),
        ("http://cdn.example/w.pt", r"what the hub redirects to is http://cdn\.example; weights"),
        ("https://10.0.0.1/w.pt", r"the hub redirects to 10\.0\.0\.1, an address that is not public"),
        ("https://[::1]/w.pt", r"the hub redirects to ::1, an address that is not public"),
        ("https://169.254.169.254/latest", r"redirects to 169\.254\.169\.254, an address that is not public"),
    ],
)
def test_redirects_that_are_not_followed(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, location: str, message: str
) -> None:
    monkeypatch.setattr(client, "_ask", lambda url: {"Location": location})
    use_hub("https://93.184.215.14", Path(constants.HF_HUB_CACHE), monkeypatch)  # an address that is public
    with pytest.raises(WeightsError, match=message):
        fetch_file(PINNED)
    assert not hub.requests


def test_a_file_without_end_is_not_begun(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match=r"first/detector/weights\.pt has 2\.05 KB, expected at most 1 KB"):
        fetch_file(PINNED)
    assert [each.method for each in hub.requests] == ["HEAD"]
