"""How a published model is built; apart, so that building other models needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TILE = 64


@dataclass(frozen=True)
class PartsOptions:
    """What the command line says about the graphs of a published model."""

    tile: int = DEFAULT_TILE
    """LR pixels on a side, halo included; multiples of 64."""
    lookup: bool = True
    """Decode by way of the nearest codes, as published; without, the latent is decoded as it is."""
    threads: int | None = None
    name: str | None = None

    @property
    def words(self) -> str:
        """These options as the command line takes them."""
        return f"--tile {self.tile}{'' if self.lookup else ' --no-lookup'}"
