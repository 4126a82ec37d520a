"""The schedule's coefficients as tensors on a device, indexed by timestep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_edge.errors import InputError
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import ScheduleSpec


@dataclass(frozen=True)
class StepTables:
    """Coefficients by timestep index, each (T,), of one dtype on one device; computed in float64 and cast last."""

    eta: Tensor
    """eta_t."""
    sigma: Tensor
    """kappa sqrt(eta_t)."""
    input_scale: Tensor
    """1 / sqrt(kappa^2 eta_t + 1)."""
    posterior_xt: Tensor
    """eta_{t-1} / eta_t."""
    posterior_x0: Tensor
    """alpha_t / eta_t."""
    posterior_std: Tensor
    """kappa sqrt(eta_{t-1} / eta_t alpha_t); 0 at t = 0."""
    next_scale: Tensor
    """The input scale of t - 1; 1 at t = 0, where no network follows and the latent goes to the decoder."""

    @classmethod
    def of(
        cls, spec: ScheduleSpec | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> StepTables:
        """The tables of a schedule; float32 is what the kernels take, float64 serves gradient checks."""
        schedule = ResidualSchedule(spec)
        scale = 1.0 / (schedule.kappa**2 * schedule.etas + 1.0) ** 0.5
        next_scale = scale.copy()
        next_scale[1:], next_scale[0] = scale[:-1], 1.0
        columns = (
            schedule.etas,
            schedule.kappa * schedule.sqrt_etas,
            scale,
            schedule.posterior_mean_coef_xt,
            schedule.posterior_mean_coef_x0,
            schedule.posterior_variance**0.5,
            next_scale,
        )
        return cls(*(torch.tensor(column, dtype=dtype, device=device) for column in columns))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.eta)

    def check_steps(self, t: Tensor, samples: int) -> None:
        """Raise InputError unless t is int64 (samples,) beside the tables. Its values: see `check_values`."""
        if t.dtype != torch.int64 or t.shape != (samples,) or t.device != self.eta.device:
            raise InputError(
                f"t is {t.dtype} {tuple(t.shape)} on {t.device}; it must be int64 ({samples},) on {self.eta.device}"
            )


def check_values(t: Tensor, steps: int) -> None:
    """Raise InputError unless 0 <= t < steps, for t on the CPU only: elsewhere reading it would wait for the device."""
    if t.device.type == "cpu" and not bool(((t >= 0) & (t < steps)).all()):
        raise InputError(f"t holds {t.min()} to {t.max()}; this schedule has the timesteps 0 to {steps - 1}")
