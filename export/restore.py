"""The networks of an exported tile again, to train on from an engine: what `rsd_edge.export.deploy` did, undone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from rsd_edge.bundle import Bundle
from rsd_edge.errors import ModelError
from rsd_edge.export.deploy import LQ_GAIN
from rsd_edge.models.checkpoint import Checkpoint, state_of
from rsd_edge.models.edge import RGB, EdgeDecoder, EdgeGenerator, EdgeStem
from rsd_edge.schedule import ResidualSchedule
from rsd_edge.specs import EDGE_FAMILY, Backend, ModelSpec, Precision

_FOLDED = ("time_embed.", "modulation.")
"""Of the student, these were folded into other weights at export."""

State = dict[str, Tensor]


def restored(bundle: Bundle) -> Checkpoint:
    """Stem, student and decoder of a compact model's fp32 graph, float32: to rounding the same function at timestep T.

    The timestep stays folded in: the student's modulation is zero, as in a new network, and what it knew of other
    timesteps is gone. So are encoder and teacher, which no engine holds. Raises ModelError for engines of other kinds
    and for graphs whose tensors do not fit.
    """
    spec = bundle.spec
    if spec.model.family != EDGE_FAMILY or spec.backend is not Backend.ONNXRUNTIME or spec.precision != Precision.FP32:
        raise ModelError(
            f"engine {bundle.path} is {spec.model.family} {spec.backend.value} {spec.precision.value}; weights can be "
            "restored from the fp32 engine of an edge model for ONNX Runtime: give that one, or a checkpoint"
        )
    tensors = {item.name: numpy_helper.to_array(item) for item in onnx.load(bundle.graph_path).graph.initializer}
    parts: dict[str, State] = {"stem": {}, "student": {}, "decoder": {}}
    for name, array in tensors.items():
        part, _, parameter = name.partition(".")
        if part in parts:
            parts[part][parameter] = torch.from_numpy(np.array(array))
    try:
        _undo(spec.model, parts)
        complete = {part: _complete(spec.model, part, state) for part, state in parts.items()}
    except (KeyError, RuntimeError) as error:
        raise ModelError(
            f"{bundle.graph_path} is not a graph that this version exports ({' '.join(str(error).split())}); build the "
            "engine again, or give a checkpoint"
        ) from error
    return Checkpoint(spec.model, complete)


def _undo(model: ModelSpec, parts: Mapping[str, State]) -> None:
    """The inverse of `DeployedTile`, on the tensors."""
    stem, student, decoder = (parts[part] for part in ("stem", "student", "decoder"))
    channels = model.edge.latent_channels
    schedule = ResidualSchedule(model.schedule)
    for name in ("weight", "bias"):
        last = f"body.{len(EdgeStem(model.edge).body) - 1}.{name}"
        stem[last] = stem[last] / schedule.input_scale(schedule.steps - 1)
    z_y, _, eps, lq = torch.split(student["head.weight"], [channels, channels, 1, RGB], dim=1)
    student["head.weight"] = torch.cat([z_y, LQ_GAIN * lq, eps], dim=1)
    decoder["head.weight"][:, channels:] *= LQ_GAIN
    for name in ("weight", "bias"):
        for state, layer in ((student, "up"), (decoder, "up_half")):
            phases = _by_phase(state[f"{layer}.0.{name}"])  # column phase, row phase, channel
            state[f"{layer}.0.{name}"] = phases.transpose(0, 2).flatten(0, 2)
        phases = _by_phase(decoder[f"up_full.0.{name}"])  # row phase, column phase, BGR
        decoder[f"up_full.0.{name}"] = phases.movedim(2, 0).flip(0).flatten(0, 2)


def _by_phase(parameter: Tensor) -> Tensor:
    return parameter.reshape(2, 2, -1, *parameter.shape[1:])


def _complete(model: ModelSpec, part: str, state: State) -> State:
    """All tensors of the part's network, those that were folded away as in a new one."""
    network: nn.Module
    if part == "student":
        network = EdgeGenerator(model.edge, noise_channel=True)
    else:
        network = {"stem": EdgeStem, "decoder": EdgeDecoder}[part](model.edge)
    folded = {name: value for name, value in network.state_dict().items() if any(key in name for key in _FOLDED)}
    network.load_state_dict(folded | state)
    return state_of(network)
