"""Runtimes that execute engines. Each module imports its own runtime, and only when an engine needs it."""

from __future__ import annotations

from pathlib import Path

from rsd_edge.backends.base import FramePath, Progress, Ticket, TileEngine, WholeFramePath
from rsd_edge.errors import BackendError
from rsd_edge.specs import EDGE_FAMILY, Backend, EngineSpec, FramePathKind, TileSpec

__all__ = [
    "FramePath",
    "Progress",
    "Ticket",
    "TileEngine",
    "WholeFramePath",
    "check_device",
    "open_engine",
    "open_frame_path",
]


def open_engine(graph_path: Path, spec: EngineSpec, *, tile: TileSpec, threads: int | None = None) -> TileEngine:
    """The engine for a graph, or for a folder with those of a published model, on the backend that its spec names.

    threads: CPU threads, or None for one on each core that this process may use. Raises BackendError, ModelError.
    """
    if spec.model.family != EDGE_FAMILY and spec.backend not in (Backend.ONNXRUNTIME, Backend.TENSORRT):
        raise BackendError(
            f"{spec.backend.value} does not run the graphs of {spec.model.family} models; use "
            f"--backend {Backend.ONNXRUNTIME.value}, or give a checkpoint to --backend {Backend.TORCH.value}"
        )
    match spec.backend:
        case Backend.ONNXRUNTIME if spec.model.family != EDGE_FAMILY:
            from rsd_edge.backends.onnx_parts import OnnxPartsEngine

            return OnnxPartsEngine(graph_path, spec, threads, tile=tile)
        case Backend.ONNXRUNTIME:
            from rsd_edge.backends.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(graph_path, spec, threads, tile=tile)
        case Backend.OPENVINO:
            from rsd_edge.backends.openvino import OpenVinoEngine

            return OpenVinoEngine(graph_path, spec, threads, tile=tile)
        case Backend.TENSORRT:
            from rsd_edge.backends.tensorrt.bundle import open_tensorrt

            return open_tensorrt(graph_path, spec, tile=tile, threads=threads)
        case Backend.TORCH:
            raise BackendError(
                f"torch runs checkpoints and {graph_path} is a graph; give a .safetensors file, or use "
                f"--backend {Backend.ONNXRUNTIME.value}"
            )


def open_frame_path(engine: TileEngine) -> WholeFramePath:
    """What takes whole frames to an engine: on the device where the engine brings kernels for that, else NumPy.

    For a checkpoint on torch, what `TorchEngine.frame_path` says. Raises MissingDependencyError, BackendError.
    """
    if engine.spec.backend is Backend.TENSORRT:
        from rsd_edge.backends.tensorrt.bundle import device_frame_path

        path = device_frame_path(engine)
        if path is not None:
            return path
    if engine.spec.backend is Backend.TORCH:
        from rsd_edge.backends.torch import TorchEngine, torch_frame_path

        if isinstance(engine, TorchEngine):
            return torch_frame_path(engine)
    from rsd_edge.pipeline import NumpyFramePath

    return NumpyFramePath(engine)


def check_device(device: str | None, backend: Backend, frame_path: FramePathKind | None = None) -> None:
    """Raise BackendError for a device on which graphs do not run with this backend, or a frame path of checkpoints."""
    if frame_path is not None:
        raise BackendError(
            f"frame path '{frame_path.value}' is for checkpoints on {Backend.TORCH.value}, and this is a graph on "
            f"{backend.value}; leave --frame-path out"
        )
    own, name = ("cuda", "the GPU") if backend is Backend.TENSORRT else ("cpu", "the CPU")
    if device not in (None, own):
        raise BackendError(
            f"device is {device}, but {backend.value} runs on {name} here; give a checkpoint (.safetensors) to "
            f"--backend {Backend.TORCH.value}, or leave --device out"
        )
