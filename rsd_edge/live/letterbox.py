"""Pictures of another shape than the film that they go into."""

from __future__ import annotations

import numpy as np

from rsd_edge.live.frames import Picture
from rsd_edge.opencv import cv2


def letterboxed(picture: Picture, width: int, height: int) -> Picture:
    """(height, width, 3): the whole picture in its own proportions, as large as fits, with black bars around it."""
    h, w = picture.shape[:2]
    scale = min(width / w, height / h)
    inner = max(1, round(scale * w)), max(1, round(scale * h))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    boxed = np.zeros((height, width, 3), np.uint8)
    part = boxed[top : top + inner[1], left : left + inner[0]]
    part[:] = cv2.resize(picture, inner, interpolation=cv2.INTER_AREA)
    return boxed
