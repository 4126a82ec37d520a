"""What travels through a live run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""BGR (h, w, 3)."""


@dataclass(frozen=True)
class LiveFrame:
    """A picture as it was captured."""

    index: int
    """Counts what was captured, dropped frames too."""
    captured: float
    """When the source handed it over, in seconds of the run's clock."""
    pixels: Picture
    epoch: int = 0
    """Grows with each reconnection: what came before is another film."""


@dataclass(frozen=True)
class LiveResult:
    """An enlarged picture and the frame that it comes from. Both are read by several threads and written by none."""

    frame: LiveFrame
    pixels: Picture
