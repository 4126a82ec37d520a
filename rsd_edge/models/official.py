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
Shapes = Mapping[str, Sequence[int]]

_WRAPPERS = (
    *("params_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "shadow_params"),
    *("state_dict", "model_state_dict", "params", "model"),
)
"""Keys under which files keep the weights, averaged ones first: where both are there, those are what was published."""
_COUNTERS = ("step", "steps", "epoch", "iteration", "iters", "num_updates", "n_averaged", "decay")
"""Numbers that lie beside the weights in some files."""
_LEFTOVERS = {"module", "_orig_mod"}
"""Parts of names, left by training on several devices and by compilation of the whole network or of a module."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMED = 10
"""Tensors that a message names before it only counts."""
_MARKS = {GENERATOR: "input_blocks.0.0.weight", AUTOENCODER: "quantize.embedding.weight"}
"""A name that only this part has."""


def _read(path: Path) -> State:
    """All tensors of a file as they are, without prefixes."""
    found = _load(path)
    state = _unwrap(found)
    if state is None:
        raise ModelError(f"{path} holds no state dict ({_held(found)}); give the file with the network's weights")
    bare: State = {}
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in _LEFTOVERS)
        if short in bare:
            raise ModelError(f"{path} holds {short} twice, with and without a prefix; save one network alone")
        bare[short] = tensor
    return bare


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist; download it with 'rsd-edge fetch', or give another path") from None
    except pickle.UnpicklingError as error:  # whose own advice is to run what the file contains
        raise ModelError(
            f"{path} is no PyTorch checkpoint, or holds more than weights, which is not read; download it again"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        said = "" if isinstance(error, KeyError) else str(error)  # a bare key tells nothing
        reason = said.strip().partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ModelError(f"{path} cannot be read as a PyTorch checkpoint ({reason}); download it again") from error


def _held(found: Any) -> str:
    if not isinstance(found, Mapping):
        return f"it holds {type(found).__name__}"
    if isinstance(found.get("shadow_params"), (list, tuple)):
        return "its shadow_params are averages without names, which only the program that wrote them can place"
    return f"it holds {', '.join(map(str, list(found)[:8]))}"


def _weights(path: Path, state: State, named: int | None) -> State:
    """Without what follows from sizes, as fp32."""
    weights = {name: tensor for name, tensor in state.items() if not recomputed(name)}
    strange = [
        f"{name} is {str(tensor.dtype if tensor.layout is torch.strided else tensor.layout).removeprefix('torch.')}"
        for name, tensor in weights.items()
        if tensor.dtype not in _FLOATS or tensor.layout is not torch.strided
    ]
    if strange:
        raise ModelError(
            f"{path} holds tensors that are no plain floats: {_listed(strange, named)}; give the originals"
        )
    return {name: tensor.float() for name, tensor in weights.items()}


def read_parts(paths: Sequence[Path], arch: PublishedArchitecture, named: int | None = NAMED) -> dict[str, State]:
    """Generator and autoencoder from files that hold one of them each: fp32, without what follows from sizes.

    Nothing in the files is executed. Raises ModelError for one that is neither, a part that comes twice or not at all,
    and, name by name, for missing, unknown and misshapen tensors, for those that are no floats, and for values that are
    not finite. named: how many names a message lists; None for all.
    """
    parts: dict[str, State] = {}
    for path in paths:
        found = _read(path)
        part = next((part for part, mark in _MARKS.items() if mark in found), None)
        if part is None:
            raise ModelError(
                f"{path} is neither a generator nor an autoencoder (it has no {' and no '.join(_MARKS.values())})"
            )
        if part in parts:
            raise ModelError(f"{path} is a second {part}; give one file for each part")
        weights = _weights(path, found, named)
        expected, buffers = _expected(part, arch)
        _check(path, part, found, expected, buffers, named)
        _check_finite(path, weights, named)
        parts[part] = weights
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
    entries = {str(key): value for key, value in found.items() if key not in _COUNTERS}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    return tensors if tensors and len(tensors) == len(entries) else None


def _expected(part: str, arch: PublishedArchitecture) -> tuple[Shapes, Shapes]:
    """Shapes of the weights, which must be there, and of what may be there but follows from sizes."""
    with torch.device("meta"):  # names and shapes alone
        network: nn.Module = SwinUNet(arch.unet) if part == GENERATOR else VqAutoencoder(arch.vq)
    weights = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return weights, network.published_buffers() if isinstance(network, SwinUNet) else {}


def _check(path: Path, part: str, state: State, expected: Shapes, buffers: Shapes, named: int | None) -> None:
    known = {**expected, **buffers}
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in known]
    misshapen = [
        f"{name} is {_shape(tensor.shape)} instead of {_shape(known[name])}"
        for name, tensor in state.items()
        if name in known and tuple(tensor.shape) != tuple(known[name])
    ]
    problems = [
        f"{kind}: {_listed(names, named)}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise ModelError(
            f"{path} does not fit this {part} ({'; '.join(problems)}); check the family, or give the configuration "
            "that came with it with --config"
        )


def _check_finite(path: Path, state: State, named: int | None) -> None:
    """A network with one NaN makes nothing else."""
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise ModelError(
            f"{path} has values that are not finite, or not in fp32, in {_listed(bad, named)}; it was saved from a "
            "failed training or damaged: give another file"
        )


def _listed(names: Sequence[str], named: int | None) -> str:
    shown = ", ".join(names[:named])
    if named is None or len(names) <= named:
        return shown
    return f"{shown} and {len(names) - named} more of {len(names)} (--verbose names all)"


def _shape(size: Sequence[int]) -> str:
    return "x".join(map(str, size)) or "a number"


def for_family(arch: PublishedArchitecture, family: str) -> PublishedArchitecture:
    """The sizes with the noise channel that students of RSD have and the others do not."""
    return replace(arch, unet=replace(arch.unet, noise_channels=1 if family == "rsd" else 0))
