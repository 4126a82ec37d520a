"""What a stage of training does: its length, rates and losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rsd_edge.distill.data_config import check_crop
from rsd_edge.errors import InputError

OBJECTIVES = ("rsd", "vsd", "sinsr")
LPIPS_NETWORKS = ("squeeze", "alex", "vgg")
GAN_KINDS = ("features", "pixels")
STEP_WEIGHTS = ("constant", "elbo")

_AT_LEAST_0 = ("warmup", "lr_final", "latent_noise")
_AT_LEAST_1 = ("iterations", "batch", "accumulate", "log_every", "validate_every", "save_every")


@dataclass(frozen=True)
class StageConfig:
    """One stage of training. A stage refuses settings that it can have no use for; those of a loss without weight do
    nothing."""

    iterations: int = 1000
    batch: int = 16
    """Samples of one update, over all processes."""
    accumulate: int = 1
    """Parts that a process computes its share of a batch in, one after the other, to need less memory."""
    crop: int | None = None
    """HR crop side of this stage; None takes data.crop."""
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100
    lr_final: float = 0.05
    """Cosine decay to this fraction of lr; 1.0 keeps it constant."""
    ema: float = 0.999
    """Decay of the averaged weights; in update n at most (1 + n) / (10 + n), so that they forget the random start."""
    clip: float | None = 1.0
    """Gradient norm above which gradients are scaled down; None never does."""
    recompute: bool = False
    """Activation checkpointing of generators and of the published decoder: about a third more time, for a fraction of
    the memory."""
    lpips_weight: float = 0.0
    lpips: str = "squeeze"
    """squeeze (comes with the package), or alex or vgg (by the package lpips)."""
    lpips_windows: bool = True
    """Compare random windows, half of them enlarged, instead of whole crops."""
    pixel_weight: float = 0.0
    chroma_weight: float = 0.0
    """Weight of the squared error of the colour differences."""
    tone_weight: float = 0.0
    """Weight of the squared error of averages over squares of 32 pixels, brightness and colour of areas, against
    the target with the input's mean colour."""
    flat_weight: float = 0.0
    """Weight of the distance from the target's local mean in flat areas."""
    lattice_weight: float = 0.0
    """Weight of the penalty on differences between the phases of the network's 8-pixel grid."""
    grid_weight: float = 0.0
    """Weight of the penalty on differences between the gradients at these phases."""
    direction_weight: float = 0.0
    """Weight of the penalty on fine detail that has other directions than the target's."""
    latent_noise: float = 0.0
    """Standard deviation of noise added to the latent while the decoder is trained."""
    log_every: int = 20
    validate_every: int = 500
    save_every: int = 200

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} of a stage is {value}; it must be finite")
        weights = [name for name in self.__dataclass_fields__ if name.endswith("_weight")]
        self._check_least(0, (*weights, *_AT_LEAST_0))
        self._check_least(1, _AT_LEAST_1)
        self._check_positive(("lr",) if self.clip is None else ("lr", "clip"))
        self._check_choice("lpips", LPIPS_NETWORKS)
        if not 0 <= self.ema < 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError("ema and betas of a stage must lie between 0 and 1, 1 excluded")
        if self.batch % self.accumulate:
            raise InputError(
                f"batch of a stage is {self.batch}; it must be a multiple of accumulate, {self.accumulate}"
            )
        if self.crop is not None:
            check_crop("crop of a stage", self.crop)

    def _check_least(self, bound: int, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(self, name) < bound:
                raise InputError(f"{name} of a stage is {getattr(self, name)}; it must be at least {bound}")

    def _check_positive(self, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(self, name) <= 0:
                raise InputError(f"{name} of a stage is {getattr(self, name)}; it must be greater than 0")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise InputError(f"{name} is '{value}'; choose {', '.join(choices[:-1])} or {choices[-1]}")


@dataclass(frozen=True)
class StudentConfig(StageConfig):
    """A stage that trains a one-step student. The defaults are the recipe of the RSD paper.

    The paper gives neither the indices of its N = 4 steps nor the discriminator's head nor a clipping norm: ours. The
    average's ramp (see `ema`) is an addition: it reaches 0.999 after 9000 updates, so that in the recipe's 3000 the
    decay is (1 + n) / (10 + n) throughout, a shorter average than the paper's constant 0.999.
    """

    iterations: int = 3000
    batch: int = 64
    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 0
    lr_final: float = 1.0
    clip: float | None = None
    lpips_weight: float = 2.0
    lpips_windows: bool = False
    fake_lr: float = 5e-5
    fake_steps: int = 5
    """K: updates of the fake model and the discriminator's head for each update of the student."""
    objective: str = "rsd"
    """rsd (gradients through both networks), vsd (both outputs detached) or sinsr (the teacher's deterministic map)."""
    distill_weight: float = 1.0
    """Weight of the objective; 0 leaves the plain regression that a claim of distillation is compared with."""
    timesteps: tuple[int, ...] = (3, 7, 11, 14)
    """rsd: the student's t_n, N evenly spaced steps that end at T; (14,) trains from the prior's step alone."""
    step_weights: str = "constant"
    """w_t: constant (1, the paper's) or elbo (ResShift's variational bound, mean 1)."""
    sid_normalise: bool = True
    """Divide each sample's loss by mean |f*(z_t) - z0_hat|."""
    inverse_weight: float = 1.0
    """sinsr: weight of ||f(z0_teacher, 0) - z_T||^2 beside the distillation term's 1."""
    truth_weight: float = 1.0
    """sinsr: weight of ||f(sg f(z0, 0), T) - z0||^2."""
    gan_weight: float = 3e-3
    gan: str = "features"
    """features: a head on the fake model's encoder, as in the paper. pixels: a patch discriminator on images."""
    gan_lr: float = 2e-4
    """Rate of the patch discriminator; the head on the fake model learns with fake_lr."""
    gan_start: int = 0
    """Iterations during which the discriminator learns without being listened to."""
    train_decoder: bool = False
    """Train stem and decoder together with the generator (joint fine-tune)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(0, ("gan_start",))
        self._check_least(1, ("fake_steps",))
        self._check_positive(("fake_lr", "gan_lr"))
        self._check_choice("objective", OBJECTIVES)
        self._check_choice("gan", GAN_KINDS)
        self._check_choice("step_weights", STEP_WEIGHTS)
        if not self.timesteps or min(self.timesteps) < 0:
            raise InputError("timesteps needs at least one index, counted from 0")

    @property
    def needs_fake(self) -> bool:
        """Whether a fake model is trained: for the objective, or for the discriminator's head on it."""
        return bool(self.distill_weight and self.objective != "sinsr") or self.feature_gan

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss asks the teacher, or the fake model that is born from it."""
        return bool(self.distill_weight) or self.feature_gan

    @property
    def deterministic(self) -> bool:
        """Whether the student learns a map that z_T alone decides: SinSR's."""
        return bool(self.distill_weight) and self.objective == "sinsr"

    @property
    def starts_from_truth(self) -> bool:
        """Whether the student is asked at its t_n, for an objective or a discriminator on its answers there."""
        return self.objective == "rsd" and self.needs_fake

    @property
    def feature_gan(self) -> bool:
        return bool(self.gan_weight) and self.gan == "features"

    @property
    def pixel_gan(self) -> bool:
        return bool(self.gan_weight) and self.gan == "pixels"
