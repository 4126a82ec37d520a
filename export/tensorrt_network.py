"""From a typed ONNX graph to a plan, with one path for TensorRT 10.3 to 11.x."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rsd_edge.backends.tensorrt.cuda import Cuda, DeviceInfo
from rsd_edge.backends.tensorrt.library import bit, created, make_logger, version_of
from rsd_edge.errors import BackendError, ModelError
from rsd_edge.export.tensorrt_options import SAME_CAPABILITY_SINCE, USUAL_WORKSPACE_MIB, TensorRtOptions
from rsd_edge.frames import SCALE
from rsd_edge.stream.atomic import atomic_file, make_folder

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

_MIB = 1 << 20
_SHARE_FOR_WORKSPACE = 0.5
_SHARE_FOR_TACTICS = 0.6
_OUT_OF_MEMORY = re.compile(r"out of memory|outofmemory|insufficient memory|memory allocation|std::bad_alloc", re.I)
_AMPERE = 8


class BuildProgress(Protocol):
    """Told what TensorRT is doing; phases are nested."""

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""

    def step(self, phase: str, step: int) -> None:
        """A step of it is done."""

    def end(self, phase: str) -> None:
        """It is over."""


@dataclass
class Compiled:
    """A plan and how it came about."""

    plan: bytes
    flags_set: list[str] = field(default_factory=list)
    flags_skipped: dict[str, str] = field(default_factory=dict)
    """Why, by name."""
    limits: dict[str, int] = field(default_factory=dict)
    """Bytes of each memory pool."""
    timing_cache: str = "none"


def compile_graph(
    trt: Any, cuda: Cuda, graph: Path, options: TensorRtOptions, tile: int, progress: BuildProgress | None = None
) -> Compiled:
    """The plan of one graph for tiles of one size.

    Raises ModelError for a graph that the parser refuses, BackendError where TensorRT finds no engine or runs out of
    memory, each with what its logger said last; KeyboardInterrupt after Ctrl-C.
    """
    logger = make_logger(trt)
    builder = created(trt, logger, "builder", lambda: trt.Builder(logger))
    # Versions before 11 take this bit; from 11 on it is accepted and means what always holds.
    typed = bit(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    network = created(trt, logger, "network", lambda: builder.create_network(typed))
    _parse(trt, network, logger, graph)
    config = created(trt, logger, "builder configuration", builder.create_builder_config)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, it would leave ten bits to the FP32 islands
    made = Compiled(b"")
    profile = created(trt, logger, "optimization profile", builder.create_optimization_profile)
    _set_shapes(trt, profile, network, config, options, tile, graph)
    made.limits = _limit_memory(trt, cuda, config, options)
    _set_flags(trt, config, options, cuda.device, made)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector's report of layers and their types
    cache = _load_timings(config, options.timing_cache, made)
    monitor = make_monitor(trt, progress)
    config.progress_monitor = monitor
    try:
        blob = builder.build_serialized_network(network, config)
    except MemoryError as error:
        raise _no_memory(graph, made, logger.tail()) from error
    if monitor.interrupted:
        raise KeyboardInterrupt
    if blob is None:
        if _OUT_OF_MEMORY.search(logger.tail()):
            raise _no_memory(graph, made, logger.tail())
        raise BackendError(
            f"TensorRT {trt.__version__} builds no engine from {graph.name}: {logger.tail()}; "
            "try another --precision, or --level 5"
        )
    if cache is not None and options.timing_cache is not None:
        _keep_timings(config, options.timing_cache)
    made.plan = bytes(blob)
    return made


def make_monitor(trt: Any, progress: BuildProgress | None) -> Any:
    """TensorRT's IProgressMonitor on ours. After Ctrl-C it asks TensorRT to stop, and `interrupted` is True."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._tell(lambda told: told.begin(phase_name, parent_phase, num_steps))

        def phase_finish(self, phase_name: str) -> None:
            self._tell(lambda told: told.end(phase_name))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(lambda told: told.step(phase_name, step))
            return not self.interrupted

        def _tell(self, tell: Callable[[BuildProgress], None]) -> None:
            # An exception must not cross TensorRT's own code.
            try:
                if progress is not None:
                    tell(progress)
            except KeyboardInterrupt:
                self.interrupted = True
            except Exception:
                log.debug("progress cannot be shown", exc_info=True)

    return Monitor()


def _parse(trt: Any, network: Any, logger: Any, graph: Path) -> None:
    parser = created(trt, logger, "parser", lambda: trt.OnnxParser(network, logger))
    if parser.parse_from_file(str(graph)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = "; ".join(f"{error.node_operator()} ({error.node_name()}): {error.desc()}" for error in errors)
    raise ModelError(
        f"TensorRT {trt.__version__} cannot read {graph.name}: {reasons or logger.tail()}; "
        "export it again with 'rsd-edge build-engine --onnx-only', which checks operators"
    )


def _set_shapes(
    trt: Any, profile: Any, network: Any, config: Any, options: TensorRtOptions, tile: int, graph: Path
) -> None:
    """Fix the tile in the network itself, so that all that follows from it is folded; leave the batch to a profile."""
    open_batch = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = _fixed(tensor.name, tuple(tensor.shape), tile, graph)
        tensor.shape = trt.Dims(shape)
        if -1 in shape:
            open_batch = True
            limits = [trt.Dims([count if length < 0 else length for length in shape]) for count in options.batch]
            profile.set_shape(tensor.name, *limits)
    if not open_batch and options.batch != (1, 1, 1):
        raise ModelError(f"{graph.name} takes one batch only; leave --batch out, or export it again")
    if open_batch and config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses the profile of {graph.name} for batches {options.batch}; use 1,1,1")


def _fixed(name: str, shape: Shape, tile: int, graph: Path) -> Shape:
    """The shape with the side of the tile in the place of open lengths; -1 for the batch alone."""
    side = SCALE * tile if name == "image" else tile
    fixed = tuple(side if index >= 2 and length < 0 else length for index, length in enumerate(shape))
    if any(length < 0 for length in fixed[1:]):
        raise ModelError(f"{graph.name} leaves the shape of '{name}' open: {shape}; export it again")
    if len(fixed) == 4 and (fixed[2], fixed[3]) != (side, side):
        raise ModelError(
            f"{graph.name} takes {name} of {fixed[2]}x{fixed[3]}, not of {side}x{side}; "
            "leave --tile out, or export it again for that tile"
        )
    return fixed


def _limit_memory(trt: Any, cuda: Cuda, config: Any, options: TensorRtOptions) -> dict[str, int]:
    free = cuda.free_bytes()
    wanted = _MIB * (options.workspace_mib or USUAL_WORKSPACE_MIB[cuda.device.integrated])
    limits = {"WORKSPACE": min(wanted, int(_SHARE_FOR_WORKSPACE * free))}
    if cuda.device.integrated:  # by default three quarters of all memory, which others use as well
        limits["TACTIC_DRAM"] = int(_SHARE_FOR_TACTICS * free)
    for name, size in limits.items():
        config.set_memory_pool_limit(getattr(trt.MemoryPoolType, name), size)
    return limits


def _set_flags(trt: Any, config: Any, options: TensorRtOptions, device: DeviceInfo, made: Compiled) -> None:
    names = {
        "version-compatible": ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"),  # a plan must not bring code to run
        "refit": ("REFIT",),
        "strip-plan": ("STRIP_PLAN", "REFIT_IDENTICAL"),
    }
    for flag in options.flags:
        if flag == "hardware-compatible":
            skipped = _set_compatibility(trt, config, device)
        else:
            missing = [name for name in names[flag] if not hasattr(trt.BuilderFlag, name)]
            skipped = f"TensorRT {trt.__version__} has no {missing[0]}" if missing else ""
            for name in names[flag] if not missing else ():
                config.set_flag(getattr(trt.BuilderFlag, name))
        if skipped:
            made.flags_skipped[flag] = skipped
            log.warning("%s was left out: %s", flag, skipped)
        else:
            made.flags_set.append(flag)


def _set_compatibility(trt: Any, config: Any, device: DeviceInfo) -> str:
    """Why not, or nothing once it is set."""
    levels = trt.HardwareCompatibilityLevel
    if version_of(trt) >= SAME_CAPABILITY_SINCE:
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY
    elif device.integrated:
        return f"TensorRT {trt.__version__} has it for desktop GPUs only"
    elif device.capability[0] < _AMPERE:
        return f"it begins with compute capability {_AMPERE}.0, and this GPU has {device.capability}"
    else:
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    return ""


def _load_timings(config: Any, path: Path | None, made: Compiled) -> Any:
    """A cache in the configuration: that of the file where it is for this version and GPU, an empty one otherwise."""
    if path is None:
        return None
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, False):
        made.timing_cache = "used" if known else "begun"
        return cache
    if known:
        log.warning("%s holds timings of another TensorRT or GPU; it is begun again", path)
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        log.warning("TensorRT gives no timing cache; timings are not kept")
        return None
    made.timing_cache = "begun again"
    return cache


def _keep_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    timings = cache.serialize() if cache is not None else None
    if timings is None:
        log.warning("TensorRT gives no timings back; %s stays as it was", path)
        return
    make_folder(path.parent)
    with atomic_file(path) as file:
        file.write(bytes(timings))


def _no_memory(graph: Path, made: Compiled, tail: str) -> BackendError:
    limits = ", ".join(f"{name.lower()} {size // _MIB} MiB" for name, size in made.limits.items())
    return BackendError(
        f"TensorRT ran out of memory while building {graph.name} (limits: {limits}): {tail}; close other programs, or "
        "use a smaller --tile, --batch or --workspace"
    )
