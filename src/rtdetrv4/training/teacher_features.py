"""The teacher's features of whole images on disk, from which the targets of augmented samples are cut.

A teacher then costs one pass over the images, once, and later what reading costs. Features of a crop are those that its
part of the image has in the whole image, which the teacher saw without changes of color, so they are not those that the
teacher would have for the sample itself: they know what is around the crop, and are coarser where it is enlarged.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from rtdetrv4.data.arrays import read_array
from rtdetrv4.data.batch import STRIDE, prepare_images, split_images
from rtdetrv4.data.cache import DECODERS
from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.loader import build_loader
from rtdetrv4.data.records import Split
from rtdetrv4.distillation import Teacher, alignment_terms, unit_parts
from rtdetrv4.errors import ConfigError
from rtdetrv4.input_files import size_text
from rtdetrv4.ops.device import is_out_of_memory
from rtdetrv4.outputs import caches_folder, write_whole
from rtdetrv4.runtime.preprocess import ResizeMode, content_of
from rtdetrv4.types import Batch, View

logger: logging.Logger = logging.getLogger(__name__)

BYTES = np.dtype(np.float16).itemsize
HEADER_BYTES = 128
DISK_TO_LEAVE = 1 << 30


class CutFeatures(NamedTuple):
    """What F5 of augmented samples should be."""

    features: Tensor
    """B×D×h×w float32."""
    is_known: Tensor
    """B×h×w: False for the black around images."""


class TeacherFeatures:
    """Features of the images of a split, one memory-mapped fp16 file (D×h×w) for each.

    The name of a file is a digest of everything that its content depends on: the teacher's weights, the image file, the
    size at which the teacher saw it, and the versions of what decodes and computes.

    Args:
        split: the images.
        image_size: (H, W) at which the teacher sees whole images; their grid is that at stride 32.
        teacher: on the device.
        folder: created if missing. Anything in it may be deleted between runs.
        resize: how images fill their size.

    Raises:
        ConfigError: the teacher is no module, so that nobody knows whether it has changed.
    """

    def __init__(
        self,
        split: Split,
        image_size: tuple[int, int],
        teacher: Teacher,
        folder: Path,
        resize: ResizeMode = "stretch",
    ) -> None:
        self.split = split
        self.image_size = image_size
        self.resize: ResizeMode = resize
        self.teacher = teacher
        self.grid_hw: tuple[int, int] = (image_size[0] // STRIDE, image_size[1] // STRIDE)
        self.folder: Path = folder / teacher_digest(teacher)
        self._shape = (teacher.dim, *self.grid_hw)
        self._damaged: set[Path] = set()

    def fill(self, accelerator: Accelerator, *, batch: int, workers: int) -> int:
        """Compute the features that are not there yet, each rank its part; a collective call.

        An image that cannot be read has none.

        Returns:
            How many this rank has computed.

        Raises:
            ConfigError: the disk has no room for them.
        """
        done = 0
        everywhere = accelerator.process_index, accelerator.num_processes
        here = accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)
        # Once among all ranks, and then what is still missing here, because other machines may have disks of their own.
        for rank, ranks in (everywhere, here) if accelerator.num_processes > 1 else (everywhere,):
            missing = [index for index in range(len(self.split.records)) if not self._is_whole(self._path(index))]
            accelerator.wait_for_everyone()  # every rank looks before one writes, or they would not share the same list
            self._require_room(len(missing))
            if missing and not done and accelerator.is_local_main_process:
                size = size_text(self._bytes() * len(missing))
                logger.info("Teacher features of %d images go to %s (%s).", len(missing), self.folder, size)
            done += self._compute(missing[rank::ranks], accelerator, batch=batch, workers=workers)
            accelerator.wait_for_everyone()
        return done

    def _compute(self, own: Sequence[int], accelerator: Accelerator, *, batch: int, workers: int) -> int:
        """Compute and write the features of these images; if memory runs out, of fewer at once."""
        if not own:
            return 0
        part = self.split._replace(records=tuple(self.split.records[index] for index in own))
        loader = build_loader(
            DetectionDataset(part, self.image_size, resize=self.resize), batch, workers, shuffle=False
        )
        console = Console(stderr=True)
        is_shown = accelerator.is_main_process and console.is_interactive
        done, num_parts = 0, 1
        for whole in track(loader, "Teacher", console=console, transient=True, disable=not is_shown):
            while True:
                parts = split_images(whole, num_parts)
                try:
                    arrays = [array for each in parts for array in self._ask(each.images, accelerator)]
                    break
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error) or len(parts) == len(whole.images):
                        raise
                num_parts *= 2
            for info, array in zip(whole.infos, arrays, strict=True):
                if info.is_readable:
                    write_whole(self._path(own[done]), lambda temporary, array=array: _save(temporary, array))
                done += 1
        return done

    def _ask(self, images: Tensor, accelerator: Accelerator) -> np.ndarray:
        """The teacher's features of some images, fp16."""
        pixels = prepare_images(images, self.image_size, accelerator.device)
        with accelerator.autocast():
            return self.teacher(pixels, self.grid_hw).to(torch.float16).cpu().numpy()

    @torch.no_grad()
    def targets(self, views: Sequence[Sequence[View]], grid_hw: tuple[int, int], device: torch.device) -> CutFeatures:
        """Cut the features of augmented samples out of those of their images.

        Args:
            views: of each of B samples.
            grid_hw: (h, w) of F5.
            device: where to compute.
        """
        height, width = grid_hw
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) / height,
            (torch.arange(width, device=device) + 0.5) / width,
            indexing="ij",
        )
        features = torch.zeros(len(views), self.teacher.dim, height, width, device=device)
        is_known = torch.zeros(len(views), height, width, dtype=torch.bool, device=device)
        for sample, own in enumerate(views):
            for view in own:
                grid = self._read(view.image)
                if grid is None:
                    continue
                image_x, image_y = _inverse(view, x, y)
                first_x, first_y, last_x, last_y = view.shown
                inside = (image_x >= max(first_x, 0)) & (image_x <= min(last_x, 1))
                inside &= (image_y >= max(first_y, 0)) & (image_y <= min(last_y, 1))
                left, top, wide, high = self._content(view.image)
                places = torch.stack((2 * (left + wide * image_x) - 1, 2 * (top + high * image_y) - 1), dim=-1)
                cut = F.grid_sample(
                    grid.to(device).float()[None], places[None], padding_mode="border", align_corners=False
                )[0]
                features[sample] += view.weight * inside * unit_parts(cut, self.teacher.parts, dim=0)
                is_known[sample] |= inside
        return CutFeatures(features, is_known)

    def _content(self, index: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of an image in what the teacher saw, as shares."""
        info = self.split.records[index].info
        content = content_of((info.height, info.width), self.image_size, self.resize)
        height, width = self.image_size
        return content.left / width, content.top / height, content.width / width, content.height / height

    def _path(self, index: int) -> Path:
        info = self.split.records[index].info
        file = self.split.image_dir / info.file_name
        try:
            status = file.stat()
            source: tuple[Any, ...] = (status.st_size, status.st_mtime_ns)
        except OSError:
            source = ()
        parts = (str(file.resolve()), info.height, info.width, source, self.image_size, self.resize, DECODERS)
        digest = hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}.npy"

    def _read(self, index: int) -> Tensor | None:
        path = self._path(index)
        try:
            held = read_array(path, np.float16)
        except FileNotFoundError:  # the image cannot be read
            return None
        except (OSError, ValueError):
            held = None
        if held is not None and held.shape == self._shape:
            return torch.from_numpy(held.copy())
        if path not in self._damaged:
            self._damaged.add(path)
            logger.warning("%s in the cache of the teacher is damaged; until the next start, its image has none.", path)
        return None

    def _is_whole(self, path: Path) -> bool:
        """Whether there is a file of the right size; what is in it, is looked at when it is read."""
        try:
            return path.is_file() and path.stat().st_size == self._bytes()
        except OSError:
            return False

    def _bytes(self) -> int:
        return HEADER_BYTES + BYTES * self.teacher.dim * self.grid_hw[0] * self.grid_hw[1]

    def _require_room(self, count: int) -> None:
        existing = next(parent for parent in (self.folder, *self.folder.parents) if parent.exists())
        free, needed = shutil.disk_usage(existing).free, count * self._bytes()
        if needed > free - DISK_TO_LEAVE:
            raise ConfigError(
                f"The teacher's features of {count} images take {size_text(needed)}, and {existing} has "
                f"{size_text(free)} left. Set XDG_CACHE_HOME to a larger disk, or distillation.cache=none."
            )


def alignment(
    projected: Tensor,
    batch: Batch,
    teacher: Teacher,
    features: TeacherFeatures | None,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """L_DSI on a batch, with the teacher's own features or those on disk, as scalars.

    Args:
        projected: B×D×h×w.
        batch: float images, on the device.
        teacher: asked if there are no `features`.
        features: only cells that have some count.
        accelerator: the number format in which the teacher computes.

    Returns:
        "distill"; and with several teachers, of which it is the mean, "teacher_NAME" of each, without gradient.
    """
    grid_hw = (projected.shape[-2], projected.shape[-1])
    if features is None:
        with accelerator.autocast():
            teacher_map, is_known = teacher(batch.images, grid_hw), None
    else:
        teacher_map, is_known = features.targets(batch.views, grid_hw, projected.device)
    terms = alignment_terms(projected, teacher_map, teacher.parts, is_known)
    found = {"distill": torch.stack(list(terms.values())).mean()}
    if len(terms) > 1:
        found |= {f"teacher_{name}": term.detach() for name, term in terms.items()}
    return found


def teacher_digest(teacher: Teacher) -> str:
    """What tells two teachers apart: name, weights, normalization, number format and versions.

    Raises:
        ConfigError: its network is no module, or that of one of several.
    """
    versions = [importlib.metadata.version(name) for name in ("rtdetrv4", "timm")]
    digest = hashlib.sha256()
    for each in (module for module in teacher.modules() if isinstance(module, Teacher)):  # itself, and those inside
        if not isinstance(each.network, nn.Module):
            raise ConfigError(
                f"distillation.cache: the teacher {each.name} is a function, so nobody can tell whether it has "
                "changed. Wrap a torch module, or set distillation.cache=none."
            )
        index = getattr(each.network, "index", None)  # the block
        digest.update(repr((each.name, each.dim, each.stride, each.dtype, index, versions)).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def features_folder() -> Path:
    """Where features are kept."""
    return caches_folder() / "features"


def _inverse(view: View, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The points of the image that the sample shows at (x, y), as shares."""
    a, b, c, d, e, f = view.matrix
    determinant = a * e - b * d
    x, y = x - c, y - f
    return (e * x - b * y) / determinant, (a * y - d * x) / determinant


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)
