"""What all stages of training share: networks, their averages and optimisers, and the update of one optimiser."""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.data import Batch, log_skipped, validation_batch
from rsd_edge.distill.ema import Ema
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.runtime import Runtime
from rsd_edge.distill.stage_config import StageConfig
from rsd_edge.errors import InputError, RsdEdgeError
from rsd_edge.models.checkpoint import Checkpoint, state_of

DATA = "data"
"""The training images among what a stage is given."""
PartT = TypeVar("PartT")
Scalars = dict[str, Tensor]


@dataclass(frozen=True)
class EncodedBatch(Batch):
    """A batch whose latents are known: z0 and z_y, float32 (n, zc, H / 4, W / 4)."""

    z0: Tensor | None = None
    z_y: Tensor | None = None


class Part(NamedTuple):
    """Samples that go through the networks together, on the run's device, and their random numbers."""

    batch: Batch
    noise: Randomness
    latents: tuple[Tensor, Tensor] | None = None
    """z0 and z_y, where the batch came with them."""


Draw = Callable[[], Sequence[Part]]
"""Takes the next batch: this process's share of it, in the parts that gradients are accumulated over."""


@dataclass(frozen=True)
class Validation:
    """Figures of the averaged weights, and the images that they were computed on."""

    figures: dict[str, float]
    images: tuple[Tensor, ...] = ()
    """Bicubic, result and reference, (n, 3, h, w) each, RGB in [-1, 1]."""


class TrainingDivergedError(RsdEdgeError):
    """A loss, gradient or weight became NaN or infinite."""


class Stage(ABC):
    """What one stage trains and how. Subclasses call `train_network` and `add_optimizer` in their constructor."""

    name: str
    unused: tuple[str, ...] = ()
    """Settings that this stage has no use for, refused if they are set: they would change nothing, in silence."""

    def __init__(self, config: DistillConfig, stage: StageConfig, runtime: Runtime | None) -> None:
        for field in fields(stage):
            if field.name in self.unused and getattr(stage, field.name) != field.default:
                raise InputError(f"stage {self.name} has no use for {self.name}.{field.name}; leave it out")
        self.config = config
        self.stage = stage
        self.runtime = runtime or Runtime(precision=config.precision)
        self.networks: dict[str, nn.Module] = {}
        """Trained networks; all of their state is kept for resuming."""
        self.live: dict[str, nn.Module] = {}
        """The same as they are called in training, where gradients are to be averaged over processes."""
        self.averages: dict[str, Ema] = {}
        """Averages by part name; these are the weights that a finished stage hands on."""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.frozen: dict[str, nn.Module] = {}
        """Parts handed on unchanged."""
        self.origin: dict[str, str] = {}
        """What its networks began as, where that is no stage of the run; part of the record."""
        self.given: dict[str, str] = {}
        """Digests of the weights that it was built from, by role or stage, and under DATA of what images it has."""
        self._updates: dict[str, tuple[str, ...]] = {}
        self._rates: dict[str, str] = {}

    @functools.cached_property
    def validation(self) -> Batch:
        """The fixed validation crops. Raises InputError if there is no data for them."""
        batch = validation_batch(self.config.data, self.config.crop_of(self.stage), self.config.seed)
        if self.runtime.is_main:
            log_skipped(batch)
        return Batch(batch.x0.to(self.runtime.device), batch.y0.to(self.runtime.device))

    @property
    def batches_per_iteration(self) -> int:
        return 1

    @abstractmethod
    def step(self, iteration: int, draw: Draw) -> Scalars:
        """One iteration: take batches with `draw`, update, return scalars to log."""

    @abstractmethod
    def validate(self) -> Validation:
        """Figures of the averaged weights on the fixed validation crops."""

    def train_network(self, name: str, network: nn.Module, *, average: bool) -> None:
        """Take a network into training, on the run's device."""
        self.networks[name] = network.to(self.runtime.device)
        self.live[name] = self.runtime.wrap(network)
        if average:
            self.averages[name] = Ema(network, self.stage.ema)

    def add_optimizer(self, name: str, networks: Iterable[str], rate: str = "lr") -> None:
        """An optimiser for all parameters of these networks, with the rate that this setting of the stage says."""
        lr = getattr(self.stage, rate)
        names = tuple(networks)
        parameters = itertools.chain.from_iterable(self.networks[network].parameters() for network in names)
        self.optimizers[name] = torch.optim.AdamW(parameters, lr=lr, betas=self.stage.betas, weight_decay=0.0)
        self.optimizers[name].param_groups[0]["peak_lr"] = lr
        self.scalers[name] = self.runtime.scaler()
        self._updates[name] = names
        self._rates |= dict.fromkeys((name, *names), rate)

    def require_loss(self, *weights: str) -> None:
        """Raise InputError unless one of these weights is set: without a loss the stage would run and learn nothing."""
        if not any(getattr(self.stage, weight) for weight in weights):
            raise InputError(f"stage {self.name} has no loss; set {self.name}.{f' or {self.name}.'.join(weights)}")

    def update(
        self, name: str, parts: Sequence[PartT], loss_of: Callable[[PartT], tuple[Tensor, Scalars]]
    ) -> tuple[Tensor, Scalars]:
        """Gradients of the mean loss over all parts and processes, and one step of an optimiser.

        Returns the gradient norm before clipping, and means of the scalars over the parts. Raises
        TrainingDivergedError, in all processes and before any weight changes, if a loss or its gradient is not finite.
        """
        self.optimizers[name].zero_grad(set_to_none=True)
        live = [self.live[network] for network in self._updates[name]]
        total = torch.zeros((), device=self.runtime.device)
        sums: Scalars = {}
        for i, part in enumerate(parts):
            with self.runtime.local_gradients(live if i + 1 < len(parts) else ()):
                with self.runtime.autocast():
                    loss, scalars = loss_of(part)
                loss = loss / len(parts)
                self.scalers[name].scale(loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
            for key, value in scalars.items():
                sums[key] = sums.get(key, torch.zeros_like(total)) + value.detach() / len(parts)
        total = self.runtime.mean(total)
        if not torch.isfinite(total):
            raise self.diverged(f"loss of '{name}' is {float(total)}", self.rate_of(name))
        return self._apply(name, total), sums

    def _apply(self, name: str, loss: Tensor) -> Tensor:
        optimizer, scaler = self.optimizers[name], self.scalers[name]
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = float("inf") if self.stage.clip is None else self.stage.clip
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        # fp16 overflows on purpose: its scale is as large as it can be, and a step too far is skipped.
        if not torch.isfinite(norm) and (not scaler.is_enabled() or scaler.get_scale() < 1):
            raise self.diverged(f"gradient of '{name}' is not finite (loss {float(loss):.4g})", self.rate_of(name))
        scaler.step(optimizer)
        scaler.update()
        return norm

    def rate_of(self, name: str) -> str:
        """The setting that an optimiser, or a network in training, has its rate from."""
        return self._rates[name]

    def diverged(self, what: str, rate: str) -> TrainingDivergedError:
        """The error to raise; it says what to do about it. rate: the setting that is to be lowered."""
        return TrainingDivergedError(f"stage {self.name}: {what}; try again with a lower {self.name}.{rate}")

    def weights(self, record: dict[str, Any]) -> Checkpoint:
        """What the stage hands on."""
        parts = {name: state_of(ema.average) for name, ema in self.averages.items()}
        parts |= {name: state_of(module) for name, module in self.frozen.items()}
        return Checkpoint(self.config.model, parts, record)

    def validation_noise(self, count: int) -> Randomness:
        """The random numbers of every validation."""
        return Randomness(f"{self.config.seed}/validation", 0, count, self.runtime.device)
