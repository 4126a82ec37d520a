"""What a training run is: one frozen dataclass tree, read from YAML, with `key=value` overrides.

The same tree is stored in every checkpoint's record, so that weights say how they were made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from rsd_edge.distill.data_config import DataConfig, check_crop
from rsd_edge.errors import InputError
from rsd_edge.specs import ModelSpec, from_dict, to_dict

_WEIGHTS = (
    "distill_weight",
    "lpips_weight",
    "pixel_weight",
    "chroma_weight",
    "flat_weight",
    "lattice_weight",
    "gan_weight",
)
_LEAST = {
    0: (*_WEIGHTS, "warmup", "lr_final", "gan_start", "latent_noise"),
    1: ("iterations", "batch", "fake_steps", "log_every", "validate_every", "save_every"),
}


@dataclass(frozen=True)
class StageConfig:
    """One stage of training. Loss weights that a stage does not use stay 0."""

    iterations: int = 1000
    batch: int = 16
    crop: int | None = None
    """HR crop side of this stage; None takes data.crop."""
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100
    lr_final: float = 0.05
    """Cosine decay to this fraction of lr; 1.0 keeps it constant."""
    ema: float = 0.999
    clip: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    fake_lr: float = 2e-4
    fake_steps: int = 3
    """K: updates of the fake model (and nothing else) for each update of the student."""
    distill_weight: float = 0.0
    """Weight of L_theta; 0 makes the stage a plain regression and trains no fake model."""
    objective: str = "rsd"
    """rsd (gradients through both networks) or vsd (both outputs detached)."""
    timesteps: tuple[int, ...] = (3, 7, 11, 14)
    """The student's t_n. The paper takes N = 4 evenly spaced steps that end at T without giving their indices."""
    lpips_weight: float = 0.0
    pixel_weight: float = 0.0
    chroma_weight: float = 0.0
    flat_weight: float = 0.0
    """Weight of the distance from the target's local mean in flat areas."""
    lattice_weight: float = 0.0
    """Weight of the penalty on differences between the phases of the network's 8-pixel grid."""
    gan_weight: float = 0.0
    gan_lr: float = 2e-4
    gan_start: int = 0
    train_decoder: bool = False
    """Train stem and decoder together with the generator (joint fine-tune)."""
    latent_noise: float = 0.0
    """Standard deviation of noise added to the latent while the decoder is trained."""
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 200

    def __post_init__(self) -> None:
        for bound, names in _LEAST.items():
            for name in names:
                if not getattr(self, name) >= bound:
                    raise InputError(f"{name} of a stage is {getattr(self, name)}; it must be at least {bound}")
        for name in ("lr", "fake_lr", "gan_lr", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} of a stage is {getattr(self, name)}; it must be greater than 0")
        if not 0 <= self.ema < 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError("ema and betas of a stage must lie between 0 and 1, 1 excluded")
        if self.objective not in ("rsd", "vsd"):
            raise InputError(f"objective is '{self.objective}'; choose rsd or vsd")
        if not self.timesteps or min(self.timesteps) < 0:
            raise InputError("timesteps needs at least one index, counted from 0")
        if self.crop is not None:
            check_crop("crop of a stage", self.crop)


@dataclass(frozen=True)
class DistillConfig:
    """A whole run: the model, its data, and the four stages in their order."""

    model: ModelSpec
    run_dir: str = "runs/edge"
    seed: int = 0
    precision: str = "fp32"
    """fp32, or bf16 (autocast; losses, norms and optimisers stay in fp32)."""
    threads: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: StageConfig = field(default_factory=StageConfig)
    teacher: StageConfig = field(default_factory=StageConfig)
    student: StageConfig = field(default_factory=StageConfig)
    finetune: StageConfig = field(default_factory=StageConfig)

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is '{self.precision}'; training runs in fp32 or bf16")
        if self.seed < 0 or (self.threads is not None and self.threads < 1):
            raise InputError("seed must not be negative, and threads at least 1")
        last = self.model.schedule.steps - 1
        for name, stage in (("student", self.student), ("finetune", self.finetune)):
            if stage.distill_weight and max(stage.timesteps) > last:
                raise InputError(
                    f"{name}.timesteps holds {max(stage.timesteps)}, but the schedule's last index is {last}; "
                    "lower it or raise model.schedule.steps"
                )

    def stage_dir(self, stage: str) -> Path:
        return Path(self.run_dir) / stage

    def crop_of(self, stage: StageConfig) -> int:
        return stage.crop or self.data.crop


class _Yaml(yaml.SafeLoader):
    """YAML in which 1e-4 is a number; by the standard it would be text for want of a point."""


_Yaml.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def load_config(path: Path, overrides: Iterable[str] = ()) -> DistillConfig:
    """Read a YAML file and apply `dotted.key=value` overrides (values parsed as YAML).

    Raises InputError for a missing or malformed file and for values out of range, ModelError for unknown keys and wrong
    types.
    """
    if not path.is_file():
        raise InputError(f"configuration {path} does not exist; give a file, e.g. one of rsd_edge/distill/configs")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Yaml)
    except OSError as error:
        raise InputError(f"configuration {path} cannot be read ({error.strerror}); check its permissions") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"configuration {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"configuration {path} must be a mapping with at least the key 'model'")
    for override in overrides:
        _set(tree, override)
    return from_dict(DistillConfig, tree)


def _set(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"override '{override}' is not key=value, e.g. student.iterations=200")
    *parents, leaf = dotted.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"override '{override}': '{parent}' is a value, not a group of keys")
        node = child
    try:
        node[leaf] = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise InputError(f"override '{override}': the value is not valid YAML, perhaps for want of quotes") from error


def config_to_dict(config: DistillConfig) -> Mapping[str, Any]:
    """The configuration as plain data, for records and logs."""
    return cast("Mapping[str, Any]", to_dict(config))
