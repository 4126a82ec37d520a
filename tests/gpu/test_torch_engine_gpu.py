"""Checkpoints on a real GPU against the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsd_edge.backends.torch import TorchEngine
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.official import for_family
from rsd_edge.models.swin_unet import recomputed
from rsd_edge.specs import ModelSpec, Precision, PublishedArchitecture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: checkpoints were not run on a GPU"),
]


def test_a_gpu_computes_what_the_cpu_does(
    small_published: PublishedArchitecture, published_states: dict[str, dict[str, torch.Tensor]]
) -> None:
    """In fp32; codes are looked up in latents of two devices, so a few may differ."""
    generator = {name: item for name, item in published_states["student"].items() if not recomputed(name)}
    spec = ModelSpec("rsd", "rsd", multiple_of=64, architecture=for_family(small_published, "rsd"))
    checkpoint = Checkpoint(spec, {"generator": generator, "autoencoder": published_states["autoencoder"]})
    rng = np.random.default_rng(0)
    lq = rng.uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    noise = rng.standard_normal((2, 4, 64, 64), np.float32)
    details = [np.empty((2, 256, 256, 3), np.float32) for _ in range(2)]
    for device, detail in zip(("cpu", "cuda"), details, strict=True):
        with TorchEngine(checkpoint, Precision.FP32, 2, device=device) as engine:
            engine.collect(engine.submit(lq, noise, detail))
    assert details[0].std() > 0.1
    assert (np.abs(details[0] - details[1]) < 1e-3).mean() > 0.99
