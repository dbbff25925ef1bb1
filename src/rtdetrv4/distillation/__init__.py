"""Deep Semantic Injector (DSI), Gradient-guided Adaptive Modulation (GAM), and the teachers.

Names are imported on first use, so that the catalog of teachers can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtdetrv4.distillation.f5 import tokens_of_stride
    from rtdetrv4.distillation.injector import Injector, alignment_loss, alignment_terms, unit_parts
    from rtdetrv4.distillation.modulation import Modulation, ModulationReport, next_weight
    from rtdetrv4.distillation.student import DistillationStudent
    from rtdetrv4.distillation.tap import Tap
    from rtdetrv4.distillation.teacher import Teacher, combine_teachers, load_teacher, wrap_teacher
    from rtdetrv4.distillation.teacher_catalog import DEFAULT_TEACHER, PIP_TEACHER, TEACHERS, TeacherFacts

__all__ = [
    "DEFAULT_TEACHER",
    "PIP_TEACHER",
    "TEACHERS",
    "DistillationStudent",
    "Injector",
    "Modulation",
    "ModulationReport",
    "Tap",
    "Teacher",
    "TeacherFacts",
    "alignment_loss",
    "alignment_terms",
    "combine_teachers",
    "load_teacher",
    "next_weight",
    "tokens_of_stride",
    "unit_parts",
    "wrap_teacher",
]

_HOMES = {
    "teacher_catalog": ("DEFAULT_TEACHER", "PIP_TEACHER", "TEACHERS", "TeacherFacts"),
    "f5": ("tokens_of_stride",),
    "injector": ("Injector", "alignment_loss", "alignment_terms", "unit_parts"),
    "modulation": ("Modulation", "ModulationReport", "next_weight"),
    "student": ("DistillationStudent",),
    "tap": ("Tap",),
    "teacher": ("Teacher", "combine_teachers", "load_teacher", "wrap_teacher"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
