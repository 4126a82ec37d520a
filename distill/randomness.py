"""Every random number of training, as a function of where it is used.

A sample's noise depends on the run's seed, the stage, the update, the sample's place in the batch and the purpose, and
on nothing else: not on how many processes or parts share the batch, and not on what was drawn before. So nothing random
has to be saved to resume exactly, and two processes draw what one would.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from rsd_edge.kernels.implementation import REFERENCE, TRITON
from rsd_edge.kernels.noise_field import noise_field, seed_tensor


class Randomness:
    """The random numbers of `count` samples of one update, from the batch's sample `first` on."""

    def __init__(self, update: str, first: int, count: int, device: str | torch.device = "cpu") -> None:
        """update: names the update among all of all runs, such as "0/student/17/2"."""
        self.update, self.first, self.count = update, first, count
        self.device = torch.device(device)

    def part(self, first: int, count: int) -> Randomness:
        """Those of `count` of the samples."""
        return Randomness(self.update, self.first + first, count, self.device)

    def normal(self, purpose: str, channels: int, height: int, width: int) -> Tensor:
        """Standard normal float32 (count, channels, height, width)."""
        seeds = seed_tensor(self._words(purpose), self.device)
        origins = torch.zeros(self.count, 2, dtype=torch.int32, device=self.device)
        implementation = TRITON if self.device.type == "cuda" else REFERENCE
        return noise_field(seeds, origins, channels, height, width, implementation=implementation)

    def like(self, purpose: str, latent: Tensor) -> Tensor:
        """Standard normal float32 of a tensor's shape."""
        return self.normal(purpose, *latent.shape[1:])

    def choice(self, purpose: str, values: tuple[int, ...]) -> Tensor:
        """One of the values for each sample, uniformly, int64 (count,)."""
        chosen = [values[word % len(values)] for word in self._words(purpose)]
        return torch.tensor(chosen, device=self.device)

    def shared(self, purpose: str) -> torch.Generator:
        """A CPU generator for decisions that all samples of the update share."""
        return torch.Generator().manual_seed(_word(f"{self.update}/{purpose}") >> 1)

    def _words(self, purpose: str) -> list[int]:
        return [_word(f"{self.update}/{purpose}/{self.first + i}") for i in range(self.count)]


def _word(text: str) -> int:
    """64 bits out of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
