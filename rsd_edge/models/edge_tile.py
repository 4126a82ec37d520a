"""The edge networks of a checkpoint as one module."""

from __future__ import annotations

from rsd_edge.errors import ModelError
from rsd_edge.models.checkpoint import Checkpoint
from rsd_edge.models.edge import EdgeDecoder, EdgeGenerator, EdgeStem, EdgeTile


def edge_tile(checkpoint: Checkpoint) -> EdgeTile:
    """Stem, student and decoder of a checkpoint as one module. Raises ModelError if a part is missing or misshapen."""
    if checkpoint.spec.family != "edge":
        raise ModelError(f"model '{checkpoint.spec.name}' is of family '{checkpoint.spec.family}'; only edge exports")
    if checkpoint.spec.steps != 1:
        raise ModelError(f"model '{checkpoint.spec.name}' takes {checkpoint.spec.steps} steps; only one step exports")
    arch = checkpoint.spec.edge
    stem, student, decoder = EdgeStem(arch), EdgeGenerator(arch, noise_channel=True), EdgeDecoder(arch)
    for part, network in (("stem", stem), ("student", student), ("decoder", decoder)):
        checkpoint.load_into(part, network)
    return EdgeTile(checkpoint.spec, stem, student, decoder).eval()
