"""Deep Semantic Injector (DSI), Gradient-guided Adaptive Modulation (GAM), and the teachers."""

from rtdetrv4.distillation.injector import Injector, alignment_loss
from rtdetrv4.distillation.modulation import Modulation, ModulationReport, next_weight
from rtdetrv4.distillation.student import DistillationStudent
from rtdetrv4.distillation.teacher import DEFAULT_TEACHER, PIP_TEACHER, Teacher, load_teacher

__all__ = [
    "DEFAULT_TEACHER",
    "PIP_TEACHER",
    "DistillationStudent",
    "Injector",
    "Modulation",
    "ModulationReport",
    "Teacher",
    "alignment_loss",
    "load_teacher",
    "next_weight",
]
