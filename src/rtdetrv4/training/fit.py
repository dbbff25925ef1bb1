"""`batch: auto`, or `run.accumulate: auto`: how many images fit into memory at once.

The effective batch, and with it learning rate and schedule, stays what the recipe says; only the number of parts in
which it is processed, one after the other, depends on the device. So a run means the same on a small device as on a
large one.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rtdetrv4.data.document import count_of
from rtdetrv4.distillation import DistillationStudent
from rtdetrv4.errors import ConfigError
from rtdetrv4.losses import TermsOf, weighted_sum
from rtdetrv4.runtime.machine import free_host_memory
from rtdetrv4.types import Targets

logger: logging.Logger = logging.getLogger(__name__)

USABLE_SHARE = 0.7
"""Usable share of the free memory; the rest is for what no graph holds: workspaces, gradients of maps, the teacher, and
fragmentation."""
USABLE_SHARE_ON_CPU = 0.33
"""The same of main memory, where workspaces are larger and freed blocks fit new tensors less well: a step took 1.9 (N
at 320 pixels, 16 images) to 2.9 times (S at 640, 4 images) what its graph and the optimizer hold."""
WORKER_BYTES = 250 << 20
"""What a process that loads images takes besides the images."""
STATES_PER_PARAMETER = 4
"""The gradient, AdamW's two averages, and the EMA, none of which is allocated yet when memory is measured."""


def bytes_per_image(
    student: DistillationStudent,
    criterion: TermsOf,
    weights: Mapping[str, float],
    image_size: tuple[int, int],
    num_boxes: int,
    accelerator: Accelerator,
) -> int:
    """Bytes per image that a training step keeps for the backward pass.

    They are counted, tensor by tensor, in two forward passes. The student's weights and statistics, and the state of
    random number generators, are left unchanged.

    Args:
        student: on the device.
        criterion: the run's criterion.
        weights: weights of its terms.
        image_size: the largest (H, W) of the run.
        num_boxes: the largest number of boxes in an image; determines the number of denoising queries.
        accelerator: device and number format.
    """
    device = accelerator.device
    labels = torch.zeros(num_boxes, dtype=torch.int64, device=device)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2], device=device).repeat(num_boxes, 1)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*student.parameters(), *student.buffers())}

    def saved_bytes(num_images: int) -> int:
        targets = Targets.of([(labels, boxes)] * num_images)
        storages: dict[int, Tensor] = {}  # kept alive, so that no address is reused

        def pack(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()  # with its graph, an output would keep the graph alive that keeps the output
            if tensor.untyped_storage().data_ptr() not in own:
                storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with accelerator.autocast():
                output, projected = student(torch.rand(num_images, 3, *image_size, device=device), targets)
            terms = criterion(output, targets)
            if projected is not None:
                terms["distill"] = projected.float().square().mean()
            loss = weighted_sum(terms, {**weights, "distill": 1.0})
        del loss
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    student.train()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.compiler.set_stance("force_eager"),  # two batch sizes that the run will not have need no compiling
    ):
        try:
            two, four = saved_bytes(2), saved_bytes(4)
        finally:
            for name, buffer in student.named_buffers():
                buffer.data.copy_(before[name])
    return max((four - two) // 2, 1)


def free_memory(accelerator: Accelerator, reserved: int = 0) -> int:
    """Bytes that this process can still allocate on its device, the minimum over ranks; a collective call.

    Args:
        accelerator: device and ranks.
        reserved: bytes of main memory that this process's workers will take; counts where the device shares it.
    """
    device = accelerator.device
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what PyTorch keeps for later, as of an earlier run, is free too
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:  # the ranks of a machine share it
        free = max(free_host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - reserved, 0)
    megabytes = accelerator.gather(torch.tensor([free >> 20], device=device))
    assert isinstance(megabytes, Tensor)
    return int(megabytes.min()) << 20


def worker_memory(workers: int, image_bytes: int, images_in_one: int, batch_bytes: int) -> int:
    """Bytes of main memory that the processes which load images take.

    Args:
        workers: their number.
        image_bytes: of the largest image, decoded.
        images_in_one: images in a training sample, 4 with mosaic.
        batch_bytes: of a batch; each worker prepares two ahead.
    """
    return workers * (WORKER_BYTES + 2 * images_in_one * image_bytes + 2 * batch_bytes)


def parts_that_fit(
    batch: int, ranks: int, per_image: int, student: nn.Module, free: int, usable_share: float = USABLE_SHARE
) -> int:
    """The smallest number of parts of a device's images with which a part and the optimizer's state fit into memory.

    Args:
        batch: effective batch, over all ranks; a multiple of `ranks`.
        ranks: number of devices.
        per_image: from `bytes_per_image`.
        student: the module that is trained.
        free: from `free_memory`.
        usable_share: the share of it to plan with.

    Raises:
        ConfigError: not even two images fit, or the only image of a device does not.
    """
    state = STATES_PER_PARAMETER * sum(p.numel() * p.element_size() for p in student.parameters())
    usable = int(usable_share * free) - state
    on_device = batch // ranks
    fit = usable // per_image
    # Batch norm needs at least two images for meaningful statistics.
    for parts in range(1, on_device + 1):
        size = on_device // parts
        if on_device % parts == 0 and size <= fit and (size > 1 or on_device == 1):
            logger.log(
                logging.INFO if parts > 1 else logging.DEBUG,
                "Memory: %.1f GB free, %.0f MB per image: %d images per step%s, in %s.",
                free / 1e9,
                per_image / 1e6,
                on_device,
                f" on each of {ranks} devices" if ranks > 1 else "",
                count_of(parts, "part", "parts"),
            )
            return parts
    raise ConfigError(
        f"A batch of {batch} cannot be split so that it fits: an image takes {per_image / 1e6:.0f} MB and "
        f"{max(usable, 0) / 1e6:.0f} MB are free for images. Choose a smaller image size or model, or "
        "run.checkpoint_activations=true."
    )
