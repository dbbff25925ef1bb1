"""Limits of control groups, read from made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdetrv4.runtime import machine
from rtdetrv4.runtime.machine import (
    _cores_of_cgroups,
    _free_in_cgroups,
    free_host_memory,
    num_cores,
    processor_name,
)

GB = 10**9


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_memory_and_cores_of_version_2(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    stat = "anon 1\ninactive_file 500000000\n"
    write(tmp_path / "outer", memory__max=f"{8 * GB}\n", memory__current=f"{6 * GB}\n", cpu__max="150000 100000\n")
    write(tmp_path / "outer/inner", memory__max="max\n", memory__current="5\n", cpu__max="max 100000\n")
    assert list(_free_in_cgroups(tmp_path, own)) == [2 * GB]
    assert list(_cores_of_cgroups(tmp_path, own)) == [2]
    write(tmp_path / "outer", memory__stat=stat)
    assert list(_free_in_cgroups(tmp_path, own)) == [2 * GB + 500_000_000]


def test_memory_and_cores_of_version_1(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/\n")
    # Inside a container, the folder of its own group is mounted in place of the root.
    write(tmp_path / "memory", memory__limit_in_bytes=f"{4 * GB}", memory__usage_in_bytes=f"{5 * GB}")
    write(tmp_path / "cpu", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert list(_free_in_cgroups(tmp_path, own)) == [0]
    assert list(_cores_of_cgroups(tmp_path, own)) == [3]


@pytest.mark.parametrize("quota", ["-1", "max"])
def test_no_limits(tmp_path: Path, quota: str) -> None:
    own = tmp_path / "cgroup"
    assert list(_free_in_cgroups(tmp_path, own)) == []
    own.write_text("0::/\n3:cpu:/\n")
    write(tmp_path / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert list(_free_in_cgroups(tmp_path, own)) == []
    assert list(_cores_of_cgroups(tmp_path, own)) == []


def test_this_machine_has_memory_and_cores() -> None:
    assert 2**24 < free_host_memory() < 2**45
    assert 1 <= num_cores() < 10_000


def test_the_processor_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A fast one\nprocessor\t: 1\nmodel name\t: other\n")
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    assert processor_name() == "A fast one, 2 cores"
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(machine, "num_cores", lambda: 1)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert processor_name() == "arm64, 1 core"
