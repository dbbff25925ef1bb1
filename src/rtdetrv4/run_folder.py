"""The folder of a training run: its files, the record of its settings, and what may change on resume."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rtdetrv4.assembly.training import patience_of
from rtdetrv4.config import (
    Recipe,
    changed_settings,
    flat_settings,
    given_settings,
    load_recipe,
    override,
    to_yaml,
)
from rtdetrv4.data.document import count_of, some_of
from rtdetrv4.data.unlabeled import describe_unlabeled
from rtdetrv4.doctor.summary import summarize
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.evaluation import Metrics
from rtdetrv4.evaluation.report import REPORT_FILES as EVALUATION_FILES
from rtdetrv4.input_files import of_home
from rtdetrv4.outputs import (
    LOG_FILE,
    SIMILARITY_FILE,
    make_folder,
    numbered_folders,
    unfinished_name,
    unused_folder,
    write_text,
)
from rtdetrv4.report import FACTS_FILE, METRICS_FILE, REPORT_FILES, REPORT_PAGE
from rtdetrv4.run_lock import locked
from rtdetrv4.training.checkpoint import BEST_FILE, LAST_FILE, check_checkpoint, load_checkpoint
from rtdetrv4.training.state import is_complete
from rtdetrv4.weights.files import WEIGHTS_FILE, listing

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rtdetrv4.assembly.derive import Choice
    from rtdetrv4.data.formats import Split, Splits
    from rtdetrv4.doctor import Findings

logger: logging.Logger = logging.getLogger(__name__)

RunKind = Literal["training", "pretraining"]

RECIPE_FILE, RECORD_FILE = "recipe.yaml", "run.json"
RUN_FILES = (
    RECIPE_FILE,
    RECORD_FILE,
    LOG_FILE,
    WEIGHTS_FILE,
    BEST_FILE,
    LAST_FILE,
    "curves.png",
    "predictions.jpg",
    "train_batch*.jpg",
    "pseudo_batch.jpg",
    "validation.txt",
    "nonfinite.json",
    "tensorboard/events.*",
    "profile/table.txt",
    "profile/trace.json",
    *REPORT_FILES,
    *(f"val/{name}" for name in (*EVALUATION_FILES, FACTS_FILE, SIMILARITY_FILE, *REPORT_FILES)),
)
"""What a run writes, as glob patterns: a folder that holds any of it is not given to another run unasked."""
FREE_ON_RESUME = (
    "data.cache",
    "data.cache_size",
    "data.path",
    "data.unlabeled",
    "data.workers",
    "distillation.teacher_compile",
    "run.channels_last",
    "run.checkpoint_activations",
    "run.compile",
    "run.derive",
    "run.device",
    "run.log_every",
    "run.out",
    "run.save_minutes",
    "run.tracker",
    "run.val_batch",
)
"""Settings that do not change the results, or that may have to differ on another machine."""
_RECORDED_PACKAGES = ("rtdetrv4", "torch", "torchvision", "timm", "accelerate", "numpy")


class RunFolder:
    """Paths in a run folder; `docs/guides/training.md` lists the other files there."""

    @classmethod
    def for_new_run(cls, path: str | Path, accelerator: Accelerator, *, exist_ok: bool = False) -> RunFolder:
        """Return the folder of a new run: `path`, or path-2, path-3, … if that holds a run or another one takes it.

        It is taken by creating an empty recipe.yaml, so that no two runs that begin at once share it. With several
        ranks the first decides, because the others might already see what it has written.

        Args:
            path: the folder that was asked for.
            accelerator: of the run; the call is collective.
            exist_ok: return `path` if it holds a run, too; `remove_earlier_run` then makes room. Files of such names
                that come from elsewhere are not a run's.
        """
        from accelerate.utils import broadcast_object_list

        folder = cls(path)
        if accelerator.is_main_process and not (exist_ok and folder.recipe.is_file()):
            while not folder._is_taken:
                folder = cls(unused_folder(Path(path), RUN_FILES))
                folder._take()
        chosen = [str(folder.path)]
        broadcast_object_list(chosen)
        return folder if accelerator.is_main_process else cls(chosen[0])

    @classmethod
    def latest(cls, path: str | Path) -> RunFolder:
        """Return that of path, path-2, path-3, … which was trained in last, or `path` if none can be resumed."""
        stopped = [folder for folder in map(cls, numbered_folders(Path(path))) if folder.can_resume]
        return max(stopped, key=lambda folder: folder._saved_at, default=cls(path))

    @classmethod
    def of(cls, path: str | Path) -> RunFolder | None:
        """Return the folder of a run that is given as itself or as one of its training states; None if it is none."""
        found = of_home(path)
        folder = cls(found.parent if found.name in (LAST_FILE, BEST_FILE) else found)
        return folder if folder.recipe.is_file() else None

    def __init__(self, path: str | Path) -> None:
        self.path: Path = Path(path)
        self.weights: Path = self.path / WEIGHTS_FILE
        """The best weights, for prediction, export and fine-tuning."""
        self.best: Path = self.path / BEST_FILE
        """The training state that the best weights come from."""
        self.last: Path = self.path / LAST_FILE
        """The latest training state, to resume from."""
        self.recipe: Path = self.path / RECIPE_FILE
        """Every setting of the run."""
        self.record: Path = self.path / RECORD_FILE
        """Versions, seed, classes, and fingerprints of the data."""
        self.validation: Path = self.path / "validation.txt"
        """The validation images, if the data had no validation part and some were taken from training."""
        self.log: Path = self.path / LOG_FILE
        self.predictions: Path = self.path / "predictions.jpg"
        self.report: Path = self.path / REPORT_PAGE
        self.evaluation: Path = self.path / "val"
        self._is_taken = False
        self._new_folders: list[Path] = []

    @property
    def kind(self) -> RunKind:
        """What the run is."""
        return self._recorded("kind") or "training"

    def _take(self) -> None:
        """Create recipe.yaml, unless another run has been faster."""
        self._new_folders = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        make_folder(self.path)
        with suppress(FileExistsError):
            self.recipe.touch(exist_ok=False)
            self._is_taken = True

    @contextmanager
    def held(self, accelerator: Accelerator) -> Iterator[None]:
        """Inside, no other process trains in this folder; if that fails before it begins, nothing of it is left.

        The call is collective, and the main process holds the lock for all.

        Raises:
            ConfigError: another process trains there.
        """
        from accelerate.utils import broadcast_object_list

        with self._given_back_on_error(), ExitStack() as stack:
            refusal: list[str | None] = [None]
            if accelerator.is_main_process:
                try:
                    stack.enter_context(locked(self.path))
                    self._remove_unfinished()
                except ConfigError as error:
                    refusal = [str(error)]
            broadcast_object_list(refusal)
            if refusal[0] is not None:
                raise ConfigError(refusal[0])
            yield

    def _remove_unfinished(self) -> None:
        """Remove what a run that was killed was just writing."""
        for pattern in RUN_FILES:
            folder, _, name = pattern.rpartition("/")
            for file in (self.path / folder).glob(unfinished_name(name)):
                with suppress(OSError):  # it is in nobody's way
                    file.unlink()

    @contextmanager
    def _given_back_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if self._is_taken and self.recipe.is_file() and not self.recipe.stat().st_size:
                self.recipe.unlink()
                with suppress(OSError):  # no longer empty
                    for folder in self._new_folders:
                        folder.rmdir()
            raise

    @property
    def can_resume(self) -> bool:
        """Whether a training state is there."""
        return self.last.is_file() or self.best.is_file()

    @property
    def _saved_at(self) -> float:
        """When the latest training state was written, by the clock of the file system."""
        return max(file.stat().st_mtime for file in (self.last, self.best) if file.is_file())

    @property
    def is_worthless(self) -> bool:
        """Whether a run was stopped here before it had saved anything."""
        return self.recipe.is_file() and not (self.can_resume or self.weights.is_file())

    @property
    def _has_saved_nothing(self) -> bool:
        # A recipe.yaml alone, with something in it, may be the user's.
        return self.is_worthless and (self.record.is_file() or not self.recipe.stat().st_size)

    def require_state(self) -> None:
        """Raise if there is no run here that could go on."""
        if self._has_saved_nothing:
            raise ConfigError(
                f"In {self.path} a run was stopped before its first checkpoint, so there is nothing to resume; start "
                "it again in the same folder with the command that began it and --exist-ok (exist_ok=True in Python)."
            )
        if not self.can_resume and self.weights.is_file():
            raise ConfigError(
                f"The run in {self.path} cannot be resumed: its state, in {LAST_FILE} and {BEST_FILE}, is gone. A "
                f"new run can start from its weights: --weights {self.weights}."
            )
        for file in (self.recipe, self.last):
            if not file.is_file() and not (file is self.last and self.can_resume):
                raise ConfigError(
                    f"There is no run to resume: {file} does not exist. Name the run's folder with --out (out=… in "
                    "Python)."
                )

    def state_to_resume(self, accelerator: Accelerator) -> Path:
        """Return the newest training state that is whole: last.pt or, if that is damaged or gone, best.pt.

        Args:
            accelerator: of the run; the call is collective, and the main process decides.

        Raises:
            WeightsError: neither is whole.
        """
        from accelerate.utils import broadcast_object_list

        found: list[Path | str] = [self.last]
        if accelerator.is_main_process:
            try:
                check_checkpoint(self.last)
            except WeightsError as damage:
                try:
                    check_checkpoint(self.best)
                except WeightsError as other:
                    words = [str(damage), f"Nor can the older state be used: {other}"]
                    if self.weights.is_file():
                        words.append(f"A new run can start from its weights: --weights {self.weights}.")
                    found = [" ".join(words)]
                else:
                    logger.warning("%s Resuming from %s instead, which may be some epochs older.", damage, self.best)
                    found = [self.best]
        broadcast_object_list(found)
        if isinstance(found[0], str):
            raise WeightsError(found[0])
        return found[0]

    @property
    def pictures_and_pages(self) -> list[Path]:
        """What a complete run leaves to look at, for its tracker."""
        names = (*REPORT_FILES, "curves.png", "predictions.jpg", "pseudo_batch.jpg")
        return [*(self.path / name for name in names), *sorted(self.path.glob("train_batch*.jpg"))]

    def recorded_start(self) -> dict[str, Any] | None:
        """What the run in this folder started from, as run.json says; None if it does not."""
        return self._recorded("start")

    def write_record(
        self,
        recipe: Recipe,
        splits: Splits,
        start: Mapping[str, Any] | None = None,
        derived: Sequence[Choice] | None = None,
        own_teacher: str | None = None,
        *,
        kind: RunKind = "training",
    ) -> None:
        """Write recipe.yaml, run.json, and the list of validation images if these were chosen here.

        Args:
            recipe: every setting.
            splits: the data.
            start: what the run started from, see `rtdetrv4.assembly.start.Start.record`.
            derived: the settings that were derived for the run; None keeps those of the record there is, on resume.
            own_teacher: the name of a teacher that was given as an object, which no recipe can make again.
            kind: what the run is.
        """
        parts = _read_parts(splits)
        names, ids = parts["train"].classes
        record = {
            "kind": kind,
            "versions": package_versions(),
            "seed": recipe.run.seed,
            "settings": _fixed_settings(recipe),
            "start": start,
            "classes": dict(zip(names, ids, strict=True)),
            "data": {
                name: {"images": len(part.records), "fingerprint": part.fingerprint, "problems": list(part.problems)}
                for name, part in parts.items()
            },
            "data_notes": list(splits.notes),
            "derived": self._recorded("derived") if derived is None else [choice._asdict() for choice in derived],
            "own_teacher": own_teacher,
        }
        write_text(self.recipe, to_yaml(recipe))
        # A file name that is not UTF-8 is written as JSON's own escapes.
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        write_text(self.record, text, errors="backslashreplace")
        if splits.is_val_made and splits.val is not None:
            chosen = "".join(f"{record.info.file_name}\n" for record in splits.val.records)
            write_text(self.validation, chosen, errors="surrogatepass")

    def require_teacher(self) -> None:
        """Raise if the run in this folder learns from a teacher that was given as an object.

        Its name in the recipe may even be that of another network.
        """
        if name := self._recorded("own_teacher"):
            raise ConfigError(
                f'The run in {self.path} learns from a teacher that was given as an object, "{name}", and is in no '
                "file. To resume, give it again: Detector(…).train(resume=True, teacher=…)."
            )

    def _recorded(self, key: str) -> Any:
        """An entry of run.json; None without it.

        Raises:
            ConfigError: run.json is damaged.
        """
        try:
            return json.loads(self.record.read_text(encoding="utf-8")).get(key) if self.record.is_file() else None
        except (ValueError, AttributeError) as error:
            raise self._damaged_record() from error

    def _damaged_record(self) -> ConfigError:
        return ConfigError(
            f"{self.record} is damaged and does not tell whether data and settings are those that the run began with; "
            "delete it to go on anyway."
        )

    def remove_earlier_run(self) -> None:
        """Remove what an earlier run has written, and only that, so that the files of two runs do not mix."""
        if self._is_taken:  # there is none
            return
        if found := [file for pattern in RUN_FILES for file in self.path.glob(pattern)]:
            if self._has_saved_nothing:
                logger.info("The run in %s was stopped before it had saved anything; it begins anew.", self.path)
            else:
                logger.warning("The earlier run in %s is overwritten.", self.path)
            for file in found:
                file.unlink()

    def check_data(self, splits: Splits) -> None:
        """Raise if the data is not what the run began with, according to run.json.

        Raises:
            ConfigError: classes, images or boxes have changed, or run.json cannot be read.
        """
        if not self.record.is_file():
            logger.warning(
                "%s is gone, so nothing tells whether the run goes on with the data it began with.", self.record
            )
            return
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            changed = _changed_data(record, splits)
        except (ValueError, LookupError, TypeError) as error:
            raise self._damaged_record() from error
        if changed:
            raise ConfigError(
                f"A run resumes with the data it began with, but {changed}. Restore the data, or start a new run from "
                f"the weights of this one, {self.weights}."
            )

    def is_complete(self, recipe: Recipe, accelerator: Accelerator) -> bool:
        """Whether the run has come to its end, report included, so that nothing is left to resume; a collective call.

        Args:
            recipe: of the run.
            accelerator: of the run.
        """
        from accelerate.utils import broadcast_object_list

        found = [False]
        if accelerator.is_main_process and self.weights.is_file() and self.report.is_file() and self._is_evaluated():
            with suppress(WeightsError):  # damaged: what is missing is repeated
                found = [is_complete(load_checkpoint(self.last), patience_of(recipe))]
        broadcast_object_list(found)
        return found[0]

    def _is_evaluated(self) -> bool:
        """Whether the final evaluation has its results, or there is nothing to evaluate on."""
        if self.metrics() is not None:
            return True
        try:
            return "val" not in (self._recorded("data") or ("val",))
        except ConfigError:  # `check_data` says that it is damaged
            return False

    def metrics(self) -> Metrics | None:
        """The metrics of the best weights on the validation images; None if they are missing or damaged."""
        try:
            return Metrics.from_dict(json.loads((self.evaluation / METRICS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def how_to_go_on(self) -> str:
        """Say what remains of a run that was stopped without a chance to save its state."""
        if self.can_resume:
            state = self.last if self.last.is_file() else self.best
            return f"The latest training state is in {state}; the same command with --resume continues from there."
        return f"There is no training state in {self.path} to resume from yet; start the run again."

    @contextmanager
    def failures_explained(self, recipe: Recipe, num_parts: int) -> Iterator[None]:
        """Say what to do about a run that ran out of memory or was stopped inside.

        Args:
            recipe: of the run.
            num_parts: parts in which the batch of a step is computed.
        """
        from rtdetrv4.data.loader import is_lost_worker
        from rtdetrv4.ops.device import is_out_of_memory

        try:
            yield
        except (RuntimeError, MemoryError, OSError, EOFError) as error:
            if is_lost_worker(error):
                raise ConfigError(
                    "A process that loads images was killed, most likely because memory ran out. Use fewer workers "
                    f"than {recipe.data.workers}, or a smaller batch. {self.how_to_go_on()}"
                ) from error
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"The device is out of memory with {recipe.schedule.batch} images per step in {num_parts} part(s). Use "
                "batch=auto, a smaller batch, image size or model, or run.checkpoint_activations=true."
            ) from error
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or self.how_to_go_on()) from None

    def resumed_recipe(self, recipe: Recipe, given: Mapping[str, Any], kind: RunKind = "training") -> Recipe:
        """Return the recipe that the run began with, with the changes that a resumed run may make.

        Args:
            recipe: the recipe of the detector that resumes the run.
            given: changed settings by dotted or short name.
            kind: what the run should be.

        Raises:
            ConfigError: there is no run, it is of another kind, it trains another model, or a changed setting must stay
                as it was.
        """
        self.require_state()
        if (found := self.kind) != kind:
            verb = "pretrain" if found == "pretraining" else "train"
            raise ConfigError(f"The run in {self.path} is one of `rtdetrv4 {verb}`; resume it with that.")
        before = load_recipe(self.recipe)
        recorded, written = self._recorded("settings") or {}, _fixed_settings(before)
        edited = [name for name in written if name in recorded and recorded[name] != written[name]]
        if edited:
            raise ConfigError(
                f"A run resumes with the settings it began with, but in {self.recipe} {edited[0]} was "
                f"{recorded[edited[0]]} and is {written[edited[0]]} now. Undo that to resume, or start a new run with "
                f"this recipe from its {WEIGHTS_FILE}."
            )
        if recipe.model.name != before.model.name:
            raise ConfigError(f"The run in {self.path} trains {before.model.name}, not {recipe.model.name}.")
        now = override(before, given)
        # Others follow from those that were given.
        free = (*FREE_ON_RESUME, *(set(flat_settings(before)) - given_settings(given)))
        if changed := fixed_changes(before, now, free) or fixed_changes(before, now):
            raise ConfigError(
                f"A run resumes with the settings it began with, but {changed}. Leave them out to resume, or "
                f"start a new run from its {WEIGHTS_FILE}."
            )
        return override(now, {"run.out": str(self.path)})  # the folder may have been moved


def _fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that stay as they are when a run resumes, as JSON has them."""
    fixed = {name: value for name, value in flat_settings(recipe).items() if name not in FREE_ON_RESUME}
    return json.loads(json.dumps(fixed, default=str))


def _changed_data(record: Mapping[str, Any], splits: Splits) -> str:
    """Say how the data differs from that in run.json; empty if it does not."""
    assert splits.train is not None, "a run has training images"
    before, now = list(record["classes"]), list(splits.train.classes.names)
    if added := [name for name in now if name not in before]:
        return f"it now has the class {listing(added)} too"
    if removed := [name for name in before if name not in now]:
        return f"it no longer has the class {listing(removed)}"
    if before != now:
        return f"its classes are now in the order {listing(now)}"
    parts = _read_parts(splits)
    for name in ("train", "val", "unlabeled"):
        old, part = record["data"].get(name), parts.get(name)
        if old is None or part is None:
            if old is not part:
                return f"it had {'no' if old is None else 'a'} {name} part, and now has {'one' if part else 'none'}"
        elif old["images"] != len(part.records):
            return f"its {name} part had {old['images']} images and now has {len(part.records)}"
        elif old["fingerprint"] != part.fingerprint:
            return f"file names, sizes or boxes of its {name} part have changed"
    return ""


def _read_parts(splits: Splits) -> dict[str, Split]:
    """What a run reads, by name."""
    return splits.parts | ({} if splits.unlabeled is None else {"unlabeled": splits.unlabeled})


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _RECORDED_PACKAGES},
    }


def log_findings(splits: Splits, findings: Findings | None = None) -> None:
    """Log how a data set was read, what it holds, and what was dropped, corrected or looks wrong.

    Args:
        splits: what was read.
        findings: of a quick check.
    """
    for note in splits.notes:
        logger.info(note)
    if parts := splits.parts:
        images = ", ".join(f"{name} {count_of(len(part.records), 'image', 'images')}" for name, part in parts.items())
        names = next(iter(parts.values())).classes.names
        logger.info("%s; %s: %s", images, count_of(len(names), "class", "classes"), some_of(names, 10))
    if splits.unlabeled is not None:
        logger.info("%s", describe_unlabeled(splits.unlabeled))
        for note in splits.unlabeled.problems:
            logger.info(note)
    for name, part in splits.parts.items():
        for problem in part.problems:
            logger.warning("%s: %s", name, problem)
    for line in () if findings is None else summarize(findings):
        logger.warning("%s", line)


def fixed_changes(before: Recipe, now: Recipe, free: tuple[str, ...] = FREE_ON_RESUME) -> str:
    """List changed settings outside `free` as "schedule.epochs was 50, now 60; …"; empty if there are none."""
    changed = changed_settings(before, now)
    return "; ".join(f"{name} was {old}, now {new}" for name, (old, new) in changed.items() if name not in free)
