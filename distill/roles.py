"""The networks a stage plays with, built from the checkpoints of the stages before it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsd_edge.distill.config import DistillConfig
from rsd_edge.distill.loop import WEIGHTS_FILE
from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import Checkpoint, load_checkpoint
from rsd_edge.models.edge import EdgeDecoder, EdgeEncoder, EdgeGenerator, EdgeStem, conv3x3

ModuleT = TypeVar("ModuleT", bound=nn.Module)

NETWORKS = {"encoder": EdgeEncoder, "stem": EdgeStem, "decoder": EdgeDecoder}


def stage_weights(config: DistillConfig, stage: str) -> Path:
    return config.stage_dir(stage) / WEIGHTS_FILE


def load_part(checkpoint: Checkpoint, part: str) -> nn.Module:
    """One frozen network of a checkpoint, in evaluation mode."""
    arch = checkpoint.spec.edge
    if part in NETWORKS:
        network: nn.Module = NETWORKS[part](arch)
    else:
        network = EdgeGenerator(arch, noise_channel=part == "student")
    network = channels_last(network)
    checkpoint.load_into(part, network)
    return network.requires_grad_(False).eval()


def load_stage(config: DistillConfig, stage: str) -> Checkpoint:
    """The finished weights of an earlier stage.

    Raises ModelError, with the command that makes them, if they are missing or of networks of other sizes or schedule.
    """
    path = stage_weights(config, stage)
    if not path.is_file():
        raise ModelError(f"stage {stage} has no weights yet ({path}); run 'rsd-edge distill {stage}' first")
    checkpoint = load_checkpoint(path)
    for name in ("architecture", "schedule"):
        if getattr(checkpoint.spec, name) != getattr(config.model, name):
            raise ModelError(
                f"{path} was trained with another model.{name}; restore that, or train all stages in another run_dir"
            )
    return checkpoint


def channels_last(network: ModuleT) -> ModuleT:
    """The network itself, its weights laid out as a CPU's convolutions like them."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def bicubic_up(lq: Tensor) -> Tensor:
    """(n, 3, h, w) to (n, 3, 4h, 4w): the base that the detail is added to (a = -0.75, no antialias)."""
    return functional.interpolate(lq.float(), scale_factor=4, mode="bicubic", align_corners=False)


class PatchDiscriminator(nn.Module):
    """Image and its bicubic base, both (n, 3, H, W) in [-1, 1], to a map of logits (n, 1, H / 4, W / 4).

    It judges texture, a patch of 28 pixels at a time; spectral normalisation keeps it from running away.
    """

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        layers = (
            nn.Conv2d(6, width, 3, padding=1),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            conv3x3(2 * width, 2 * width),
            conv3x3(2 * width, 1),
        )
        self.layers = nn.ModuleList(nn.utils.parametrizations.spectral_norm(layer) for layer in layers)

    def forward(self, image: Tensor, base: Tensor) -> Tensor:
        x = torch.cat([image, base], dim=1)
        for layer in self.layers[:-1]:
            x = functional.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)  # type: ignore[no-any-return]
