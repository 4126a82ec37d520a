"""What a training run is: one frozen dataclass tree, read from YAML, with `key=value` overrides.

The same tree is stored in every checkpoint's record, so that weights say how they were made.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml

from rsd_edge.distill.data_config import DataConfig
from rsd_edge.distill.stage_config import StageConfig, StudentConfig
from rsd_edge.errors import InputError, ModelError
from rsd_edge.plain import from_dict, to_dict
from rsd_edge.specs import ModelSpec, TileSpec

PRECISIONS = ("fp32", "bf16", "fp16")

_LARGEST_SEED = 2**63 - 1 - 2
"""Of torch's generators, less what stages add to it."""

_UNQUOTED = (bool, int, float, datetime.date, datetime.datetime)
"""What YAML makes of some words that are meant as text."""


@dataclass(frozen=True)
class RoleConfig:
    """Where the weights of one role come from, and what network they are weights of."""

    weights: str = ""
    """A checkpoint of rsd-edge; empty for the place where the role's weights are by default."""
    model: ModelSpec | None = None
    """What the checkpoint must be; needed only where there is no checkpoint yet, as in a dry run."""


@dataclass(frozen=True)
class RolesConfig:
    """The networks of a student stage. The student itself is `model`; the fake model is a copy of the teacher."""

    teacher: RoleConfig = field(default_factory=RoleConfig)
    """f* and, unless given apart, the latent space. By default what this run's teacher stage trained."""
    autoencoder: RoleConfig = field(default_factory=RoleConfig)
    """By default that of the teacher's checkpoint. For an edge model under a published teacher, what the run's stage
    autoencoder left: a stem and a decoder for the teacher's latents, which the student needs where it runs. The
    teacher stage takes it, too: a teacher of another size than its student is trained in a run of its own, in the
    same space."""
    student: RoleConfig = field(default_factory=RoleConfig)
    """Where the student starts: weights of a student, or of a compact teacher of its sizes. By default from the teacher
    if their sizes agree, otherwise from random weights."""
    head_width: int = 256
    """Channels of the discriminator's head on the fake model's encoder."""

    def __post_init__(self) -> None:
        if self.head_width < 1:
            raise InputError(f"roles.head_width is {self.head_width}; it must be at least 1")


@dataclass(frozen=True)
class DistillConfig:
    """A whole run: the model, its data, and the four stages in their order."""

    model: ModelSpec
    run_dir: str = "runs/edge"
    seed: int = 0
    precision: str = "fp32"
    """fp32, bf16 or fp16: autocast, with fp16's loss scaled; losses, norms and optimisers stay in fp32."""
    threads: int | None = None
    finetune_from: str = ""
    """What the fine-tune of a compact model begins with, in place of this run's student: the name of a model that
    ships, the folder of an fp32 engine for ONNX Runtime, or weights of a student or a fine-tune, less their teacher."""
    roles: RolesConfig = field(default_factory=RolesConfig)
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: StageConfig = field(default_factory=StageConfig)
    teacher: StageConfig = field(default_factory=StageConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    finetune: StudentConfig = field(default_factory=StudentConfig)

    def __post_init__(self) -> None:
        if not self.run_dir:
            raise InputError("run_dir is empty; give a folder, or . for the current one")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is '{self.precision}'; training runs in fp32, bf16 or fp16")
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise InputError(f"seed is {self.seed}; it must lie between 0 and {_LARGEST_SEED}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is {self.threads}; it must be at least 1")
        self._check_runnable()
        last = self.model.schedule.steps - 1
        for name, stage in (("student", self.student), ("finetune", self.finetune)):
            if stage.starts_from_truth and max(stage.timesteps) > last:
                raise InputError(
                    f"{name}.timesteps holds {max(stage.timesteps)}, but the schedule's last index is {last}; "
                    "lower it or raise model.schedule.steps"
                )

    def _check_runnable(self) -> None:
        """Raise InputError for a model that could be trained, and not be run afterwards."""
        if self.model.steps != 1:
            raise InputError(f"model.steps is {self.model.steps}; what is trained here takes 1 step, leave it out")
        try:
            TileSpec.of(self.model)
        except InputError as error:
            raise InputError(f"model.halo is {self.model.halo}, with which it could not run: {error}") from error

    @property
    def teacher_model(self) -> ModelSpec:
        """What the teacher is: of the run's own kind, unless a role says otherwise."""
        return self.roles.teacher.model or self.model

    def stage_dir(self, stage: str) -> Path:
        return Path(self.run_dir) / stage

    def crop_of(self, stage: StageConfig) -> int:
        return stage.crop or self.data.crop


class _Yaml(yaml.SafeLoader):
    """YAML in which 1e-4, inf and nan are numbers; by the standard they would be text for want of a point."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+[eE][-+]?[0-9]+|inf|nan)$"), list("-+0123456789in")
)


def load_config(path: Path, overrides: Iterable[str] = ()) -> DistillConfig:
    """Read a YAML file and apply `dotted.key=value` overrides: values are YAML, but text is taken as it is.

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
    try:
        return from_dict(DistillConfig, tree)
    except ModelError as error:
        if str(error).endswith(tuple(f"must be of type str, not {kind.__name__}" for kind in _UNQUOTED)):
            raise ModelError(f"{error}; YAML reads off, no, numbers and dates as such: quote it") from error
        raise


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
    if _is_text(dotted) and not text.startswith(("'", '"')):
        node[leaf] = text  # a name, in which YAML would find comments, numbers and signs of its own
        return
    try:
        node[leaf] = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise InputError(f"override '{override}': the value is not valid YAML, perhaps for want of quotes") from error


def _is_text(dotted: str) -> bool:
    hint: Any = DistillConfig
    for key in dotted.split("."):
        hint = get_type_hints(hint).get(key) if is_dataclass(hint) else None
    return hint is str


def config_to_dict(config: DistillConfig) -> Mapping[str, Any]:
    """The configuration as plain data, for records and logs."""
    return cast("Mapping[str, Any]", to_dict(config))
