"""A run's state on disk: everything that training goes on from, in one safetensors file.

Noise and samples follow from the configuration and the iteration (`rsd_edge.distill.randomness`), so that the position
in the data and the random state of every process are the iteration's number.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rsd_edge.distill.changes import Change, changes, plain
from rsd_edge.distill.stage import DATA, Stage
from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import STATE_KEY
from rsd_edge.stream.atomic import atomic_file

STATE_FILE = "state.safetensors"

log = logging.getLogger(__name__)


class Resumed(NamedTuple):
    """Where a run goes on."""

    iteration: int = 0
    seconds: float = 0.0
    changes: tuple[Change, ...] = ()
    """Settings that changed on the way, at this resumption and at earlier ones."""


def save_state(stage: Stage, folder: Path, done: int, elapsed: float, changed: Sequence[Change] = ()) -> None:
    """Write the state after iteration `done`, atomically; the last one stays if anything fails.

    Raises TrainingDivergedError if a weight is not finite, OutputError if the file cannot be written.
    """
    networks = {name: network.state_dict() for name, network in stage.networks.items()}
    averages = {name: ema.average.state_dict() for name, ema in stage.averages.items()}
    for name, tensors in (*networks.items(), *averages.items()):
        # A step with a finite gradient can still overflow, and what cannot be trained on must not replace a good state.
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise stage.diverged(f"weights of '{name}' are not finite after iteration {done}", stage.rate_of(name))
    state = {
        "iteration": done,
        "seconds": elapsed,
        "config": plain(stage.config),
        "changes": [list(change) for change in changed],
        "origin": stage.origin,
        "given": stage.given,
        "networks": networks,
        "averages": averages,
        "ema_updates": {name: ema.updates for name, ema in stage.averages.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in stage.optimizers.items()},
        "scalers": {name: scaler.state_dict() for name, scaler in stage.scalers.items()},
    }
    if stage.runtime.is_main:
        tensors = {}
        tree = _pack(state, "", tensors)
        with atomic_file(folder / STATE_FILE) as file:
            file.write(save(tensors, metadata={STATE_KEY: json.dumps(tree)}))


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote. Raises ModelError if it cannot be read."""
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        tree = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][STATE_KEY])
        state = _unpack(tree, load(data))
        if not isinstance(state, dict):
            raise TypeError("it holds no state")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}), it may be truncated; delete it to start this stage again"
        ) from error
    return state


def resume(stage: Stage, path: Path) -> Resumed:
    """Take over a state; without one the stage stays as it is.

    Raises ModelError for a state that does not fit, that another version wrote, that was begun with settings which must
    not change within a run, or that is beyond the stage's last iteration.
    """
    if not path.is_file():
        _check_alone(path)
        return Resumed()
    state = read_state(path)
    for what, key in (("its settings", "config"), ("what it was built from", "given")):
        if not isinstance(state.get(key), dict):
            raise ModelError(
                f"{path} was written by an earlier version, without {what}; finish it with that version, or choose "
                "another run_dir"
            )
    _check_origin(stage, state.get("origin", {}))
    _check_given(stage, state["given"])
    try:
        done, elapsed = int(state["iteration"]), float(state["seconds"])
        before = [Change(*change) for change in state["changes"]]
        changed = changes(state["config"], stage.config, stage.name, done)
        _restore(stage, state)
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} does not fit this configuration ({' '.join(str(error).split())}); "
            "restore the configuration it was written with, or choose another run_dir"
        ) from error
    if done > stage.stage.iterations:
        raise ModelError(
            f"stage {stage.name} has done {done} iterations already, and {stage.name}.iterations is "
            f"{stage.stage.iterations}; set it to {done} or more, or choose another run_dir for a new run"
        )
    log.info("resuming %s at iteration %d", stage.name, done)
    for change in changed if stage.runtime.is_main else ():
        log.warning("resuming with another setting: %s", change)
    return Resumed(done, elapsed, (*before, *changed))


def _check_origin(stage: Stage, begun: dict[str, str]) -> None:
    """Raise ModelError if the stage began with something else than what has that name today; the record would lie."""
    if any(begun.get(key) != stage.origin.get(key) for key in ("digest", "sha256")):  # a file may have been renamed
        then, now = (", ".join(f"{key} {value}" for key, value in which.items()) for which in (begun, stage.origin))
        raise ModelError(
            f"stage {stage.name} began with {then or 'the stages before it'}, and finetune_from says "
            f"{now or 'nothing'} now; give it what it began with, or choose another run_dir for a new run"
        )


def _check_given(stage: Stage, begun: dict[str, str]) -> None:
    """Raise ModelError if weights that the stage was built from are others now: what was trained belongs to those.

    And if its images are: which ones a run has seen already follows from all of them.
    """
    if len({begun.get(DATA), stage.given.get(DATA)} - {None}) > 1:  # earlier versions kept no digest
        raise ModelError(
            f"stage {stage.name} was begun with other images in data.train than there are now; put those back to go on "
            "with it, or choose another run_dir for a new run"
        )
    for role in sorted({*begun, *stage.given} - {DATA}):
        if begun.get(role) != stage.given.get(role):
            raise ModelError(
                f"stage {stage.name} was begun with other weights of '{role}' than there are now; put those back to go "
                "on with it, or choose another run_dir for a new run"
            )


def _check_alone(path: Path) -> None:
    """Raise ModelError if there is a state under another name, which a new run would leave behind unread."""
    for other in sorted(path.parent.glob(f"{path.stem}.*")):
        raise ModelError(
            f"{other} is a state that this version cannot read; finish the run with the version that wrote it, choose "
            "another run_dir, or move the file away to start this stage again"
        )


def _restore(stage: Stage, state: dict[str, Any]) -> None:
    for kind, members in (("networks", stage.networks), ("optimizers", stage.optimizers)):
        # Resuming with a part too many would train it from its start, with one too few would forget it, both silently.
        if state[kind].keys() != members.keys():
            raise ValueError(f"it holds {kind} {', '.join(state[kind])}; this run has {', '.join(members)}")
    for name, network in stage.networks.items():
        network.load_state_dict(state["networks"][name])
    for name, ema in stage.averages.items():
        ema.average.load_state_dict(state["averages"][name])
        ema.updates = state["ema_updates"][name]
    for name, scaler in stage.scalers.items():
        if scaler.is_enabled() and state["scalers"][name]:
            scaler.load_state_dict(state["scalers"][name])
    for name, optimizer in stage.optimizers.items():
        peaks = [group["peak_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizers"][name])
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            # Rates are the configuration's: a run that diverged is resumed with a lower one.
            group["peak_lr"], group["betas"] = peak, stage.stage.betas
        _lay_out(optimizer)


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory layout of their parameters, which the file does not keep and sums are faster with."""
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(value)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON that says where each tensor goes. Keys that are no text, which JSON has not, survive in pairs."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu").contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"items": [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    return value


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "pairs" in tree:
        return {key: _unpack(item, tensors) for key, item in tree["pairs"]}
    return [_unpack(item, tensors) for item in tree["items"]]
