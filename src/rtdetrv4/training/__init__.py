"""How a detector is trained: the loop, its plan, and what it writes."""

from rtdetrv4.training.accelerator import make_accelerator
from rtdetrv4.training.batch_sheets import BatchSheets
from rtdetrv4.training.ema import ModelEma
from rtdetrv4.training.loop import Trainer
from rtdetrv4.training.observers import Tracker, check_tracker, default_observers
from rtdetrv4.training.optimizer import adamw, parameter_groups
from rtdetrv4.training.plan import Plan, auto_patience, few_steps_advice, scale_plan, split_batch
from rtdetrv4.training.profile import Profiler
from rtdetrv4.training.pseudo_labels import PseudoLabels
from rtdetrv4.training.reports import Observer
from rtdetrv4.training.training_data import TrainingData, UnlabeledData
from rtdetrv4.training.validation import validate, validate_predictions

__all__ = [
    "BatchSheets",
    "ModelEma",
    "Observer",
    "Plan",
    "Profiler",
    "PseudoLabels",
    "Tracker",
    "Trainer",
    "TrainingData",
    "UnlabeledData",
    "adamw",
    "auto_patience",
    "check_tracker",
    "default_observers",
    "few_steps_advice",
    "make_accelerator",
    "parameter_groups",
    "scale_plan",
    "split_batch",
    "validate",
    "validate_predictions",
]
