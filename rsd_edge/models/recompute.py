"""Activation checkpointing: a block forgets what lies inside it and computes that again for its gradient."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Tensor | None, recompute: bool) -> Tensor:
    """`block(*inputs)`. With `recompute` its inner activations are not kept for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
    return cast(Tensor, block(*inputs))
