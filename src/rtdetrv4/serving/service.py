"""Everything that is served: models by name, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from rtdetrv4.errors import ConfigError
from rtdetrv4.serving.batching import BatchSettings
from rtdetrv4.serving.budget import Budget
from rtdetrv4.serving.limits import Limits
from rtdetrv4.serving.model import ServedModel
from rtdetrv4.serving.network import Network
from rtdetrv4.serving.refusals import RefusedError

STUCK_S = 60.0
"""A network that has run this long for one batch is taken to hang."""

Observe = Callable[[str, int, float], None]
"""What is told of every run of a network: the model's name, the number of images, and seconds."""


class Service:
    """Models that answer requests.

    Args:
        networks: loaded models by name; the first one answers requests that name none.
        settings: how requests are joined.
        limits: what may be sent.

    Raises:
        ConfigError: there is no model, or limits contradict each other.
    """

    def __init__(
        self, networks: Mapping[str, Network], settings: BatchSettings | None = None, limits: Limits | None = None
    ) -> None:
        if not networks:
            raise ConfigError("There is no model to serve.")
        self.limits: Limits = (limits or Limits()).checked()
        self.settings: BatchSettings = _checked(settings or BatchSettings(), self.limits)
        self._observers: list[Observe] = []
        pixels = Budget(self.limits.images_held * self.limits.pixels)
        self.models: dict[str, ServedModel] = {
            name: ServedModel(name, network, self.settings, self.limits, pixels, self._telling_of(name))
            for name, network in networks.items()
        }
        self._is_closing = False

    def observe(self, observer: Observe) -> None:
        """Tell `observer` of every run of a network."""
        self._observers.append(observer)

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the first one.

        Raises:
            RefusedError: there is none.
        """
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise RefusedError(
                404,
                "no_such_model",
                "model: there is none of this name",
                got=name[:100],
                expected=" or ".join(self.models),
            )
        return self.models[name]

    def trouble(self) -> str | None:
        """Why requests should go elsewhere; None if they may come."""
        if self._is_closing:
            return "the server is stopping"
        for model in self.models.values():
            if not model.batcher.is_alive:
                return "a model has stopped"
            if model.batcher.longest_run_s() > STUCK_S:
                return f"a model has not answered for {STUCK_S:.0f} s"
        return None

    def refuse(self) -> None:
        """Refuse what comes from now on."""
        self._is_closing = True
        for model in self.models.values():
            model.refuse()

    def close(self) -> None:
        """Refuse what comes from now on, finish what was taken, and end all threads."""
        self.refuse()
        with ThreadPoolExecutor(len(self.models)) as pool:
            list(pool.map(ServedModel.close, self.models.values()))

    def _telling_of(self, name: str) -> Callable[[int, float], None]:
        def tell(count: int, seconds: float) -> None:
            for observer in self._observers:
                observer(name, count, seconds)

        return tell


def _checked(settings: BatchSettings, limits: Limits) -> BatchSettings:
    if settings.max_batch < 1:
        raise ConfigError(f"max_batch: got {settings.max_batch}, expected 1 or more.")
    if not settings.max_wait_s >= 0:
        raise ConfigError(f"max_wait: got {settings.max_wait_s}, expected 0 or more.")
    if settings.max_queue < limits.images:
        raise ConfigError(
            f"queue: got {settings.max_queue}, expected room for the images of one request, {limits.images}; allow "
            "fewer images per request, or a longer queue."
        )
    return settings
