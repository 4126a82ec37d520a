"""Weights on disk: safetensors with the ModelSpec and the training record in the file's own metadata.

A checkpoint holds named parts ("stem", "generator", ...). Tensor names are `part.parameter`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rsd_edge.bundle import PICKLES, missing_checkpoint, unconverted
from rsd_edge.errors import InputError, ModelError
from rsd_edge.plain import from_dict, to_dict
from rsd_edge.specs import ModelSpec
from rsd_edge.stream.atomic import atomic_file

FORMAT = 1
METADATA_KEY = "rsd_edge"
STATE_KEY = "tree"
"""In the metadata of a run's state, which is no checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights by part, what they are weights of, and how they were trained."""

    spec: ModelSpec
    parts: dict[str, dict[str, Tensor]]
    record: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    """The file that it was read from."""

    def digest(self) -> str:
        """SHA-256 of the weights alone: training that ended again with the same ones writes another record."""
        found = hashlib.sha256()
        for part, state in sorted(self.parts.items()):
            for name, tensor in sorted(state.items()):
                found.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def load_into(self, part: str, module: nn.Module) -> None:
        """Load one part strictly. Raises ModelError naming missing, unknown or misshapen tensors."""
        if part not in self.parts:
            named = f"checkpoint {self.path}" if self.path else "the checkpoint"
            cure = "give what the stage student or finetune made" if part == "student" else "give one that has it"
            raise ModelError(f"{named} has no part '{part}', it holds {', '.join(sorted(self.parts))}; {cure}")
        try:
            module.load_state_dict(self.parts[part], strict=True)
        except RuntimeError as error:
            raise ModelError(f"part '{part}' does not fit this architecture: {' '.join(str(error).split())}") from error


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically, making the folder if needed. Raises OutputError if the disk is full or takes no files."""
    tensors = {
        f"{part}.{name}": tensor.detach().to("cpu").contiguous().clone()
        for part, state in checkpoint.parts.items()
        for name, tensor in state.items()
    }
    header = {"format": FORMAT, "spec": to_dict(checkpoint.spec), "record": checkpoint.record}
    data = save(tensors, metadata={METADATA_KEY: json.dumps(header)})
    with atomic_file(path) as file:
        file.write(data)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote. Raises ModelError if it is missing, damaged or of another kind."""
    with _opened(path) as handle:
        metadata = handle.metadata() or {}
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)
    spec, record = _described(metadata, path)
    return Checkpoint(spec, _by_part(tensors), record, path)


def read_spec(path: Path) -> ModelSpec:
    """What a checkpoint is, without reading its weights. Raises ModelError as `load_checkpoint` does."""
    with _opened(path) as handle:
        metadata = handle.metadata() or {}
    return _described(metadata, path)[0]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.is_dir():
        raise ModelError(f"checkpoint {path} is a folder; give the path of a file")
    if not path.is_file():
        raise missing_checkpoint(path)
    if path.suffix in PICKLES:
        raise unconverted(path)
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise ModelError(f"checkpoint {path} cannot be read ({error}); it may be truncated, copy it again") from error


def _described(metadata: Mapping[str, str], path: Path) -> tuple[ModelSpec, dict[str, Any]]:
    if STATE_KEY in metadata:
        raise ModelError(f"{path} is the state of a run, not what it left; give the weights.safetensors beside it")
    header = metadata.get(METADATA_KEY)
    if header is None:
        raise ModelError(
            f"checkpoint {path} carries no rsd-edge metadata; it was not written by `rsd-edge distill` or "
            "`rsd-edge import-weights`"
        )
    try:
        parsed = json.loads(header)
        if parsed["format"] != FORMAT:
            raise ModelError(
                f"checkpoint {path} has format {parsed['format']} and this version reads {FORMAT}; "
                "use the version of rsd-edge that wrote it"
            )
        return from_dict(ModelSpec, parsed["spec"]), dict(parsed["record"])
    except InputError as error:
        raise ModelError(f"checkpoint {path} cannot be used: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"checkpoint {path} has damaged metadata ({error}); copy it again") from error


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, parameter = name.partition(".")
        parts.setdefault(part, {})[parameter] = tensor
    return parts


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A detached copy of a module's parameters and buffers."""
    with torch.no_grad():
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
