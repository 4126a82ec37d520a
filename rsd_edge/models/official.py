"""Published checkpoint files: state dicts in any of the wrappings that they come in, checked name by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsd_edge.errors import ModelError
from rsd_edge.models.published import AUTOENCODER, GENERATOR
from rsd_edge.models.swin_unet import SwinUNet, recomputed
from rsd_edge.models.vq import VqAutoencoder
from rsd_edge.specs import PublishedArchitecture

State = dict[str, Tensor]

_WRAPPERS = ("params_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "state_dict", "params", "model")
"""Keys under which files keep the weights, averaged ones first: where both are there, those are what was published."""
_PREFIXES = ("module.", "_orig_mod.")
"""Left by training on several devices and by compilation."""
_MARKS = {GENERATOR: "input_blocks.0.0.weight", AUTOENCODER: "quantize.embedding.weight"}
"""A name that only this part has."""


def read_official(path: Path) -> State:
    """The bare state dict of a file, fp32, without prefixes and without entries that follow from sizes.

    Nothing in the file is executed. Raises ModelError if it cannot be read or holds no state dict.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; download it with 'rsd-edge fetch', or give another path") from None
    except pickle.UnpicklingError as error:  # whose own advice is to run what the file contains
        raise ModelError(
            f"{path} is no PyTorch checkpoint, or holds more than weights, which is not read; download it again"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{path} cannot be read as a PyTorch checkpoint ({reason}); download it again") from error
    state = _unwrap(found)
    if state is None:
        held = ", ".join(map(str, list(found)[:8])) if isinstance(found, Mapping) else type(found).__name__
        raise ModelError(f"{path} holds no state dict (it holds {held}); give the file with the network's weights")
    return {name: tensor.float() for name, tensor in _bare(state).items() if not recomputed(name)}


def read_parts(paths: Sequence[Path], arch: PublishedArchitecture) -> dict[str, State]:
    """Generator and autoencoder from files that hold one of them each.

    Raises ModelError for a file that is neither, a part that comes twice or not at all, and, name by name, for missing,
    unknown and misshapen tensors.
    """
    parts: dict[str, State] = {}
    for path in paths:
        state = read_official(path)
        part = next((part for part, mark in _MARKS.items() if mark in state), None)
        if part is None:
            raise ModelError(
                f"{path} is neither a generator nor an autoencoder (it has no {' and no '.join(_MARKS.values())})"
            )
        if part in parts:
            raise ModelError(f"{path} is a second {part}; give one file for each part")
        _check(path, part, state, _expected(part, arch))
        parts[part] = state
    for part in _MARKS:
        if part not in parts:
            raise ModelError(f"no file holds the {part}; give its file as well ('rsd-edge fetch --help' lists them)")
    return parts


def _unwrap(found: Any) -> Mapping[str, Tensor] | None:
    """The innermost mapping of names to tensors."""
    if not isinstance(found, Mapping):
        return None
    for key in _WRAPPERS:
        inner = _unwrap(found.get(key))
        if inner is not None:
            return inner
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    return tensors if tensors and len(tensors) == len(found) else None


def _bare(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the prefixes that all names share, however they are stacked."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _bare({name[len(prefix) :]: tensor for name, tensor in state.items()})
    return state


def _expected(part: str, arch: PublishedArchitecture) -> Mapping[str, torch.Size]:
    with torch.device("meta"):  # names and shapes alone
        network: nn.Module = SwinUNet(arch.unet) if part == GENERATOR else VqAutoencoder(arch.vq)
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _check(path: Path, part: str, state: State, expected: Mapping[str, torch.Size]) -> None:
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    misshapen = [
        f"{name} is {_shape(tensor.shape)} instead of {_shape(expected[name])}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name]
    ]
    problems = [
        f"{kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit this {part} ({'; '.join(problems)}); check the family, or give the configuration "
            "that came with it with --config"
        )


def _shape(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) or "a number"


def for_family(arch: PublishedArchitecture, family: str) -> PublishedArchitecture:
    """The sizes with the noise channel that students of RSD have and the others do not."""
    return replace(arch, unet=replace(arch.unet, noise_channels=1 if family == "rsd" else 0))
