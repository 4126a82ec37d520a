"""Which settings of a run may change when it is resumed, and what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rsd_edge.distill.config import DistillConfig, config_to_dict
from rsd_edge.errors import ModelError
from rsd_edge.plain import from_dict

_STAGE_SECTIONS = ("autoencoder", "teacher", "student", "finetune")

_MAY_CHANGE = ("threads", "precision", "data.workers", "data.cache_mb", "data.val", "data.val_lr", "data.val_crops")
"""What says how fast and how exactly things are computed, and what is only looked at."""

_MAY_CHANGE_IN_A_STAGE = (
    *("iterations", "accumulate", "recompute", "log_every", "validate_every", "save_every"),
    # Those of the optimisers: a run that diverged is resumed with a lower rate.
    *("lr", "fake_lr", "gan_lr", "betas", "warmup", "lr_final", "clip"),
)


_COMPARED_BY_DIGEST = (
    *("finetune_from", "data.train", "data.train_lr"),
    *("roles.teacher.weights", "roles.autoencoder.weights", "roles.student.weights"),
)
"""Places, which may be moved; `snapshot` compares what lies there."""


class Change(NamedTuple):
    """A setting that a run was resumed with another value of."""

    iteration: int
    """How many iterations were done with the value before."""
    setting: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.setting} was {self.before} up to iteration {self.iteration}, then {self.after}"


def plain(config: DistillConfig) -> dict[str, Any]:
    """The settings that a state keeps: all but the folder, which may be moved."""
    return {key: value for key, value in config_to_dict(config).items() if key != "run_dir"}


def changes(saved: Mapping[str, Any], config: DistillConfig, stage: str, iteration: int) -> list[Change]:
    """What differs from the settings `saved` of a state; of the stages, in the one that it is a state of.

    Raises ModelError if it is something that would make the whole another run.
    """
    before, after = (dict(_leaves(plain(which), stage)) for which in (_config(saved), config))
    found = [
        Change(iteration, key, before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    allowed = {*_MAY_CHANGE, *(f"{stage}.{name}" for name in _MAY_CHANGE_IN_A_STAGE)}
    refused = [change for change in found if change.setting not in allowed]
    if refused:
        values = ", ".join(f"{change.setting}={change.before} (now {change.after})" for change in refused)
        raise ModelError(
            f"stage {stage} was begun with {values}; set that again to go on with it, or choose another run_dir for a "
            "new run"
        )
    return found


def _config(saved: Mapping[str, Any]) -> DistillConfig:
    # By way of the class, so that settings which have been added since have their defaults.
    return from_dict(DistillConfig, saved)


def _leaves(tree: Mapping[str, Any], stage: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key, without those of the other stages, which leave checkpoints and records of their own."""
    for key, value in tree.items():
        if not prefix and key in _STAGE_SECTIONS and key != stage:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, stage, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in _COMPARED_BY_DIGEST:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
