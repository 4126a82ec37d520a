"""Algorithm 1 of RSD as it is written down, step by step: what `benchmarks/distill_step.py` compares training with.

Everything is computed where it is first asked for: HR and bicubic image are encoded apart, the student is asked twice,
the discriminator's features take three passes of the fake model's encoder, and noise is added term by term. Losses,
noise and weights are those of `rsd_edge.distill`, so that the two have to agree.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from rsd_edge.distill.latent_space import EdgeLatentSpace, VqLatentSpace
from rsd_edge.distill.objectives import discriminator_loss, fake_loss, generator_gan_loss, rsd_loss
from rsd_edge.distill.pixel_losses import BatchStatistics
from rsd_edge.distill.randomness import Randomness
from rsd_edge.distill.stage import Part, Scalars
from rsd_edge.distill.stages.student import StudentStage
from rsd_edge.models.published import bicubic_up


class PlainStage(StudentStage):
    """The student stage with objective rsd and the discriminator's head on features, unfused."""

    def _fake_terms(self, part: Part) -> tuple[Tensor, Scalars]:
        lq = part.batch.y0
        with torch.no_grad():
            z0, z_y = self._encodings(part)
            z0_hat = self._student_at_t_n(z0, z_y, lq, part.noise)
            z_t, t = self._renoise(z0_hat, z_y, part.noise)
        f_phi = self.fake.denoiser(self._scaled(z_t, t), t, lq).float()
        fake = fake_loss(f_phi, z0_hat).mean()
        critic = discriminator_loss(self._logits(z0, lq), self._logits(z0_hat, lq)).mean()
        return fake + self.stage.gan_weight * critic, {"fake": fake, "discriminator": critic}

    def _student_terms(
        self, part: Part, iteration: int, seen: list[Any], shared: BatchStatistics | None = None
    ) -> tuple[Tensor, Scalars]:
        lq, noise = part.batch.y0, part.noise
        z0, z_y = self._encodings(part)
        z0_hat = self._student_at_t_n(z0, z_y, lq, noise)
        z_t, t = self._renoise(z0_hat, z_y, noise)
        f_star = self.teacher(self._scaled(z_t, t), t, lq).float()
        f_phi = self.fake.denoiser(self._scaled(z_t, t), t, lq).float()
        distill = rsd_loss(f_star, f_phi, z0_hat, sid_normalise=self.stage.sid_normalise).mean()
        gan = generator_gan_loss(self._logits(z0_hat, lq)).mean()
        z_last = z_y + self.diffusion.tables.sigma[-1] * noise.like("z_T", z_y)
        last = self.diffusion.last(len(lq))
        eps = noise.normal("eps_T", 1, *lq.shape[2:])
        x0_hat = self.latent.detail(self.student(self._scaled(z_last, last), last, lq, eps).float(), lq)
        scalars: Scalars = {}
        pixels = self.criterion(x0_hat, bicubic_up(lq), part.batch.x0, noise, scalars, shared)
        scalars |= {"distill": distill, "gan": gan}
        return pixels + self.stage.distill_weight * distill + self.stage.gan_weight * gan, scalars

    def _encodings(self, part: Part) -> tuple[Tensor, Tensor]:
        x0, y0 = part.batch.x0, part.batch.y0
        with torch.no_grad():
            if isinstance(self.latent, VqLatentSpace):
                autoencoder = self.latent.autoencoder
                return autoencoder.encode(x0).float(), autoencoder.encode(bicubic_up(y0)).float()
            latent = cast(EdgeLatentSpace, self.latent)
            return latent.encoder(x0).float(), latent.stem(y0).float()

    def _student_at_t_n(self, z0: Tensor, z_y: Tensor, lq: Tensor, noise: Randomness) -> Tensor:
        t_n = noise.choice("t_n", self.stage.timesteps)
        z_tn = self._noised(z0, z_y, t_n, noise.like("z_tn", z0))
        eps = noise.normal("eps", 1, *lq.shape[2:])
        return cast(Tensor, self.student(self._scaled(z_tn, t_n), t_n, lq, eps)).float()

    def _renoise(self, z0_hat: Tensor, z_y: Tensor, noise: Randomness) -> tuple[Tensor, Tensor]:
        t = noise.choice("t", tuple(range(self.diffusion.steps)))
        return self._noised(z0_hat, z_y, t, noise.like("z_t", z0_hat)), t

    def _noised(self, z0: Tensor, z_y: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        eta, sigma = (
            column[t].view(-1, 1, 1, 1) for column in (self.diffusion.tables.eta, self.diffusion.tables.sigma)
        )
        return z0 + eta * (z_y - z0) + sigma * eps

    def _scaled(self, z_t: Tensor, t: Tensor) -> Tensor:
        return z_t * self.diffusion.tables.input_scale[t].view(-1, 1, 1, 1)

    def _logits(self, z: Tensor, lq: Tensor) -> Tensor:
        first = self.diffusion.at(0, len(z))
        bottleneck = self.fake.denoiser.encode(self._scaled(z, first), first, lq).bottleneck  # type: ignore[operator]
        return cast(Tensor, self.fake.head(bottleneck))  # type: ignore[misc]
