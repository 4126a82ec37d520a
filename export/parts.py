"""A published model as three ONNX graphs: encoder, generator, decoder.

    encoder.onnx    image (n, 3, 4s, 4s) -> z_y (n, 3, s, s)
    generator.onnx  z_t (n, 3, s, s), t (1), lq (n, 3, s, s)[, eps (n, 1, s, s)] -> z0 (n, 3, s, s)
    decoder.onnx    z0 -> image

n is symbolic, s is fixed: windows and masks are laid out for it. The generator scales its input itself and takes the
step's index, so that one graph serves one step and all of them; noise is an input. All are float32 but t, which is
int64. `image` going in is the bicubic enlargement of `lq`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from rsd_edge.bundle import DECODER, ENCODER, GENERATOR
from rsd_edge.errors import InputError
from rsd_edge.models.published import PublishedModel

OPSET = 17
SCALE = 4

Part = tuple[nn.Module, Mapping[str, Tensor], str]
"""A network, example inputs by name, the name of its output."""


def parts_of(model: PublishedModel, side: int) -> dict[str, Part]:
    """The graphs' networks by file name, with inputs of one tile that look like real ones.

    Raises InputError if the networks cannot take tiles of `side` LR pixels.
    """
    if side < 1 or side % model.model.multiple_of:
        raise InputError(f"tile is {side}; tiles of {model.model.name} are multiples of {model.model.multiple_of}")
    generator = torch.Generator().manual_seed(0)
    zc = model.model.architecture.latent_channels
    latent = torch.randn((1, zc, side, side), generator=generator)
    lq = torch.rand((1, 3, side, side), generator=generator) * 2 - 1
    image = nn.functional.interpolate(lq, scale_factor=SCALE, mode="bicubic")
    step = {"z_t": latent, "t": torch.tensor([model.model.schedule.steps - 1]), "lq": lq}
    if model.takes_noise:
        step["eps"] = torch.randn((1, 1, side, side), generator=generator)
    return {
        ENCODER: (model.encoder, {"image": image}, "z_y"),
        GENERATOR: (model.generator, step, "z0"),
        DECODER: (model.decoder, {"z0": _near_codes(model, side, generator)}, "image"),
    }


def _near_codes(model: PublishedModel, side: int, generator: torch.Generator) -> Tensor:
    """A latent whose pixels lie near codes: between two, rounding would decide, and decoding could not be compared."""
    codes = model.decoder.autoencoder.quantize.embedding.weight.float()
    chosen = codes[torch.randint(len(codes), (1, side, side), generator=generator)].permute(0, 3, 1, 2)
    return chosen + 1e-3 * codes.std() * torch.randn(chosen.shape, generator=generator)


def export_parts(parts: Mapping[str, Part], folder: Path) -> dict[str, Path]:
    """Write the graphs, checked with ONNX's own checker, and return them by file name."""
    written = {}
    for name, (network, inputs, output) in parts.items():
        written[name] = folder / name
        _export(network, inputs, output, written[name])
    return written


@torch.no_grad()
def _export(network: nn.Module, inputs: Mapping[str, Tensor], output: str, path: Path) -> None:
    # Masks are made on the first call; afterwards the graph has them as constants.
    example = network(*inputs.values())
    axes = {name: {0: "n"} for name in (*inputs, output) if name != "t"}
    with warnings.catch_warnings():
        # That sizes become constants is the point here; the newer exporter makes n a constant too.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    for axis, size in zip(model.graph.output[0].type.tensor_type.shape.dim[1:], example.shape[1:], strict=True):
        axis.dim_value = size  # which the exporter cannot infer
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
