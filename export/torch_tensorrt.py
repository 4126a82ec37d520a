"""The second way to a plan: Torch-TensorRT, from the network itself. Its plans go the same way as all others.

It serves to compare the two ways, and networks that ONNX cannot hold. Each of its versions is tied to one of torch and
one of TensorRT, which is why it is not the first way. Nothing here has been run: it needs a GPU.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rsd_edge.bundle import GRAPH
from rsd_edge.errors import BackendError, InputError, MissingDependencyError
from rsd_edge.export.tensorrt_options import TensorRtOptions
from rsd_edge.specs import EDGE_FAMILY, Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

TorchPart: TypeAlias = "tuple[nn.Module, Mapping[str, Tensor]]"
"""A network and one tile of example inputs, by the names of its arguments."""


def compile_part(part: TorchPart, precision: Precision, options: TensorRtOptions) -> bytes:
    """The plan of a network in FP16.

    Raises MissingDependencyError without Torch-TensorRT, BackendError for another precision or a failure of it.
    """
    if precision is not Precision.FP16:
        raise BackendError(
            f"torch-tensorrt builds fp16 engines here and not {precision.value}; leave --compiler out, or use "
            "--precision fp16"
        )
    try:
        import torch

        torch_tensorrt = importlib.import_module("torch_tensorrt")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"--compiler torch-tensorrt needs '{error.name}'; run: pip install 'rsd-edge[torch-tensorrt]', "
            "or leave --compiler out"
        ) from error
    module, example = part
    fewest, usual, most = options.batch
    module = module.half().eval().cuda()
    tensors = tuple(_input(tensor, usual) for tensor in example.values())
    names = [name for name, tensor in example.items() if tensor.ndim == 4]
    if fewest == most:
        dynamic = None
    else:
        batch = torch.export.Dim("n", min=fewest, max=most)
        dynamic = {name: {0: batch} if name in names else None for name in example}
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    try:
        with torch.no_grad():
            program = torch.export.export(module, tensors, dynamic_shapes=dynamic)
            plan = convert(
                program, arg_inputs=_inputs(torch_tensorrt, example, tensors, options), **_settings(convert, options)
            )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BackendError(f"Torch-TensorRT builds no engine: {reason}; leave --compiler out") from error
    return bytes(plan)


def torch_parts(model: str, options: TensorRtOptions, *, lookup: bool = True) -> dict[str, TorchPart]:
    """The networks of a checkpoint, by the names of the graphs that they stand for.

    Raises InputError for anything else: shipped models and bundles hold graphs, and no networks.
    """
    if not model.endswith(".safetensors"):
        raise InputError(
            f"--compiler torch-tensorrt compiles networks, and '{model}' is a graph; give --model a .safetensors "
            "checkpoint, or leave --compiler out"
        )
    import torch

    from rsd_edge.export.deploy import DeployedTile
    from rsd_edge.export.parts import parts_of
    from rsd_edge.models.checkpoint import load_checkpoint
    from rsd_edge.models.edge_tile import edge_tile
    from rsd_edge.models.published import published_model

    checkpoint = load_checkpoint(Path(model))
    side = options.tile_of(checkpoint.spec)
    if checkpoint.spec.family == EDGE_FAMILY:
        lq, noise = (torch.zeros(1, channels, side, side) for channels in (3, checkpoint.spec.noise_channels))
        return {GRAPH: (DeployedTile(edge_tile(checkpoint)), {"lq": lq, "noise": noise})}
    parts = parts_of(published_model(checkpoint, quantise=lookup), side)
    return {name: (network, inputs) for name, (network, inputs, _) in parts.items()}


def _input(tensor: Tensor, count: int) -> Tensor:
    """An example as the network is given it: floats in FP16, and a batch of that many."""
    if tensor.is_floating_point():
        tensor = tensor.half()
    if tensor.ndim == 4:
        tensor = tensor[:1].expand(count, *tensor.shape[1:]).contiguous()
    return tensor.cuda()


def _inputs(
    torch_tensorrt: Any, example: Mapping[str, Tensor], tensors: tuple[Tensor, ...], options: TensorRtOptions
) -> list[Any]:
    made = []
    for name, tensor in zip(example, tensors, strict=True):
        if tensor.ndim != 4 or options.batch[0] == options.batch[2]:
            made.append(torch_tensorrt.Input(shape=tuple(tensor.shape), dtype=tensor.dtype, name=name))
            continue
        low, mid, high = ((count, *tensor.shape[1:]) for count in options.batch)
        made.append(torch_tensorrt.Input(min_shape=low, opt_shape=mid, max_shape=high, dtype=tensor.dtype, name=name))
    return made


def _settings(convert: Any, options: TensorRtOptions) -> dict[str, Any]:
    """Those of the options that this version of Torch-TensorRT knows by name."""
    wanted: dict[str, Any] = {
        "optimization_level": options.level,
        "version_compatible": "version-compatible" in options.flags,
        "hardware_compatible": "hardware-compatible" in options.flags,
        "use_explicit_typing": True,  # of versions in which it was a choice
    }
    if options.workspace_mib is not None:
        wanted["workspace_size"] = options.workspace_mib << 20
    known = inspect.signature(convert).parameters
    return {name: value for name, value in wanted.items() if name in known}
