"""What this process may use of the machine: memory and cores, also where a container limits them."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from rtdetrv4.errors import require

_CPU_INFO = Path("/proc/cpuinfo")
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_host_memory() -> int:
    """Bytes of main memory that this process can still allocate.

    psutil sees the memory of the whole machine, while the kernel kills a container's process at the container's limit.
    """
    psutil = require("psutil", "train")
    return min([psutil.virtual_memory().available, *_free_in_cgroups(_CGROUPS, _OWN_CGROUP)])


def processor_name() -> str:
    """The processor, "AMD EPYC 9B14, 2 cores", as far as the system tells."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = num_cores()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def num_cores() -> int:
    """Processor cores that this process may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([cores, *_cores_of_cgroups(_CGROUPS, _OWN_CGROUP)]), 1)


def _free_in_cgroups(mount: Path, own: Path) -> Iterator[int]:
    """Bytes below the memory limit of every control group that has one."""
    for folder in _groups(mount, own, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and used is not None:
                yield max(limit - used + _reclaimable(folder / "memory.stat"), 0)


def _cores_of_cgroups(mount: Path, own: Path) -> Iterator[int]:
    """The processor quota of every control group that has one, rounded up to whole cores."""
    for folder in _groups(mount, own, "cpu"):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            quota, period = str(_number(folder / "cpu.cfs_quota_us")), str(_number(folder / "cpu.cfs_period_us"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield math.ceil(int(quota) / int(period))


def _groups(mount: Path, own: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups and of those around them, in version 2 and in version 1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = mount
        elif controller in controllers.split(","):
            root = mount / controller
        else:
            continue
        group = Path(path.strip("/"))
        yield from (root / inner for inner in (group, *group.parents))


def _reclaimable(stat: Path) -> int:
    """Bytes of cached files, which count as used although the kernel drops them on demand."""
    try:
        pairs = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(pairs.get("total_inactive_file", pairs.get("inactive_file", 0)))


def _number(file: Path) -> int | None:
    """The number in a file; None for "max" or without the file."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
