"""A tap on the smallest detector of every family that transformers has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdetrv4.distillation import Modulation, alignment_loss
from small_training import make_teacher
from tiny_detectors import FAMILIES, Family, labels_for, tap_of

GUIDE = Path(__file__).parents[2] / "docs/guides/other-detectors.md"


def padded_batch() -> tuple[Tensor, Tensor]:
    """Two images, of which one fills the upper left quarter only, and their mask."""
    images = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 128, 192, dtype=torch.long)
    images[1, :, 64:] = images[1, :, :, 96:] = 0
    mask[1, 64:] = mask[1, :, 96:] = 0
    return images, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tap(name: str) -> None:
    """By hand and in the model's loss alike: the same value, from the map of the layer, and a share for GAM."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make().train()
    teacher = make_teacher()
    tap = tap_of(family, model, teacher, Modulation(5.0))
    images, mask = padded_batch()
    batch: dict[str, Any] = {"pixel_values": images, "labels": labels_for(images)}
    if family.takes_mask:
        batch["pixel_mask"] = mask

    kept: list[Any] = []
    handle = model.get_submodule(family.layer).register_forward_hook(lambda layer, args, output: kept.append(output))
    detection = model(**batch).loss
    distillation = tap.loss(images)
    handle.remove()

    rows, columns = 128 // family.stride, 192 // family.stride
    output = family.select(kept[0], (128, 192)) if family.select else kept[0]
    f5 = output if output.ndim == 4 else output.transpose(1, 2).unflatten(2, (rows, columns))
    assert f5.shape[-2:] == (rows, columns)
    valid = torch.ones(2, rows, columns, dtype=torch.bool)
    if family.takes_mask:
        valid[1, rows // 2 :] = valid[1, :, columns // 2 :] = False
    expected = 5 * alignment_loss(tap.injector(f5), teacher(images, (rows, columns)), valid)
    torch.testing.assert_close(distillation, expected)

    (detection + distillation).backward()
    tap.observe()
    assert 0 < tap.end_epoch().share < 100
    torch.manual_seed(2)
    plain = model(**batch).loss
    tap.loss(images)
    tap.add_to_loss()
    torch.manual_seed(2)
    torch.testing.assert_close(model(**batch).loss - plain, expected, rtol=1e-3, atol=1e-3)


def test_the_table_of_the_guide_names_these_layers() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w -]+?) \| `(model\.[\w.-]+)` \|", text, flags=re.MULTILINE))
    assert {name: re.sub(r"-1$", "1", layer) for name, layer in rows.items()} == {
        name: family.layer for name, family in FAMILIES.items()
    }


def share_of(family: Family) -> float:
    """The layer's mean share of the gradient in steps 5 to 12, in percent; λ is 5, the teacher as wide as ViT-B."""
    torch.manual_seed(0)
    model = family.make().train()
    tap = tap_of(family, model, make_teacher(768), Modulation(5.0))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    for number in range(12):
        coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        images = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bilinear")
        loss = model(pixel_values=images, labels=labels_for(images)).loss + tap.loss(images)
        optimizer.zero_grad()
        loss.backward()
        if number >= 4:
            tap.observe()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    return tap.end_epoch().share


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_share_in_the_table(name: str) -> None:
    """Within a factor of two: other processors round in other ways, and twelve steps add up."""
    (row,) = re.findall(rf"^\| {name} \|.*\| ([\d.]+) \|$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert float(row) / 2 < share_of(FAMILIES[name]) < 2 * float(row)
