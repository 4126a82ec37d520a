"""What this machine has, what can run here and why the rest cannot. Nothing is installed."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rsd_edge import __version__
from rsd_edge.bundle import MANIFEST, ZOO, Bundle, load_bundle, staleness
from rsd_edge.engines import engine_folder
from rsd_edge.errors import BackendError, RsdEdgeError
from rsd_edge.machine import cpu_features, cpu_name, l4t_release, nvidia_driver, usable_cores
from rsd_edge.specs import Backend
from rsd_edge.trials import TRIED, Trial

ENCODERS = (
    "libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4", "h264_nvenc", "hevc_nvenc", "av1_nvenc", "h264_v4l2m2m",
)  # fmt: skip
"""Those that `rsd-edge run` uses by itself, and the hardware ones that may be named with --codec."""

_NVIDIA = "_nvenc"
_CAMERAS = Path("/sys/class/video4linux")
_MIB = 1 << 20

Facts = dict[str, Any]


def examine(folders: Sequence[Path] = (), *, speed: bool = False) -> Facts:
    """Everything, ready for JSON. folders: bundles, or folders of bundles, to look at besides the usual ones.

    speed: say what rates to expect, too, for which a few frames may be enlarged.
    """
    problems = {**_PROBLEMS, **{backend: Trial(backend).problem for backend in TRIED}}
    gpu = _gpu()
    facts: Facts = {
        "rsd_edge": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "l4t": l4t_release() or None,
        "cpu": {"name": cpu_name(), "cores": usable_cores(), "features": sorted(cpu_features())},
        "gpu": gpu,
        "driver": nvidia_driver() or None,
        "tensorrt": _tensorrt(),
        "opencv": _opencv(),
        "gstreamer": _gstreamer(),
        "pyav": _pyav(nvidia=gpu["name"] is not None or bool(nvidia_driver())),
        "cameras": _cameras(),
        "engine_folder": _engine_folder(),
    }
    # Only now: the trials take seconds, and they would disturb what measures the speed.
    backends = {backend.value: _backend(problems[backend]) for backend in Backend}
    looked_at = [facts["engine_folder"]["path"], "engines", *folders]
    bundles = _bundles(Path(folder) for folder in looked_at if folder is not None)
    empty = [path for path in folders if not _within(path)]
    return {
        **facts,
        "backends": backends,
        "engines": [_engine(path, backends) for path in sorted(bundles)] + [_no_engine(path) for path in empty],
        "speed": _speed() if speed else None,
    }


def _speed() -> Facts:
    try:
        from rsd_edge.bench.forecast import forecast

        return {**forecast(), "problem": None}
    except RsdEdgeError as error:
        return {"problem": str(error)}


def _gpu() -> Facts:
    """Of CUDA: the device and the versions, or why there is none."""
    try:
        from rsd_edge.backends.tensorrt.cuda import Cuda

        cuda = Cuda()
    except RsdEdgeError as error:
        return {"name": None, "problem": str(error)}
    try:
        device = cuda.device
        return {
            "name": device.name,
            "capability": ".".join(map(str, device.capability)),
            "integrated": device.integrated,
            "memory_mib": device.total_bytes // _MIB,
            "free_mib": cuda.free_bytes() // _MIB,
            **cuda.versions(),
            "problem": None,
        }
    except RsdEdgeError as error:
        return {"name": cuda.device.name, "problem": str(error)}
    finally:
        cuda.close()


def _tensorrt() -> Facts:
    try:
        from rsd_edge.backends.tensorrt.library import load_tensorrt

        return {"version": str(load_tensorrt().__version__), "problem": None}
    except RsdEdgeError as error:
        return {"version": None, "problem": str(error)}


def _backend(find: Callable[[], str | None]) -> Facts:
    problem = find()
    return {"usable": problem is None, "problem": problem}


def _tensorrt_problem() -> str | None:
    try:
        from rsd_edge.backends.tensorrt.device import check_device

        check_device()
    except RsdEdgeError as error:
        return str(error)
    return None


def _onnxruntime_problem() -> str | None:
    try:
        importlib.import_module("rsd_edge.backends.onnxruntime")
    except RsdEdgeError as error:
        return str(error)
    return None


_PROBLEMS: dict[Backend, Callable[[], str | None]] = {
    Backend.ONNXRUNTIME: _onnxruntime_problem,
    Backend.TENSORRT: _tensorrt_problem,
}
"""Why a backend cannot run, of those that need no trial."""


def _opencv() -> Facts:
    try:
        from rsd_edge.opencv import cv2
    except RsdEdgeError as error:
        return {"version": None, "problem": str(error)}
    return {"version": cv2.__version__, "problem": None}


def _gstreamer() -> Facts:
    try:
        from rsd_edge.live.gstreamer import NO_GSTREAMER, gstreamer_way
    except RsdEdgeError as error:
        return {"through": None, "problem": str(error)}
    way = gstreamer_way()
    return {"through": way, "problem": None if way else f"none, which CSI cameras need: {NO_GSTREAMER}"}


def _pyav(*, nvidia: bool) -> Facts:
    """Encoders that FFmpeg was built with; those of NVIDIA's GPUs only where there is one."""
    try:
        from rsd_edge.pyav import av
    except RsdEdgeError as error:
        return {"version": None, "encoders": [], "problem": str(error)}
    served = [name for name in ENCODERS if nvidia or not name.endswith(_NVIDIA)]
    return {"version": av.__version__, "encoders": [name for name in served if _encodes(name)], "problem": None}


def _encodes(name: str) -> bool:
    """FFmpeg was built with it; whether its hardware is there shows when it is opened."""
    from rsd_edge.pyav import av

    try:
        return bool(av.codec.Codec(name, "w").is_encoder)
    except (ValueError, av.FFmpegError):
        return False


def _cameras() -> list[Facts]:
    names = sorted(_CAMERAS.glob("video*/name")) if _CAMERAS.is_dir() else []
    return [{"device": f"/dev/{path.parent.name}", "name": path.read_text(errors="replace").strip()} for path in names]


def _engine_folder() -> Facts:
    try:
        return {"path": str(engine_folder()), "problem": None}
    except BackendError as error:
        return {"path": None, "problem": str(error)}


def _bundles(folders: Iterable[Path]) -> set[Path]:
    found = {path.parent for path in ZOO.glob(f"*/*/{MANIFEST}")}
    for folder in folders:
        found |= _within(folder)
    return {path for path in found if not path.name.startswith(".")}


def _within(folder: Path) -> set[Path]:
    return {path.parent.resolve() for path in (*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}"))}


def _no_engine(path: Path) -> Facts:
    return {
        **_unknown(path),
        "why": ["holds no engine; give a folder that 'rsd-edge build-engine' wrote, or its parent"],
    }


def _unknown(path: Path) -> Facts:
    return {"path": str(path), "backend": None, "precision": None, "usable": False, "why": [], "stale": []}


def _engine(path: Path, backends: Facts) -> Facts:
    facts = _unknown(path)
    try:
        bundle = load_bundle(path)
    except RsdEdgeError as error:
        return {**facts, "why": [str(error)]}
    spec = bundle.spec
    facts |= {"model": spec.model.name, "backend": spec.backend.value, "precision": spec.precision.value}
    problem = backends[spec.backend.value]["problem"]
    stale = staleness(bundle)
    if problem:
        return {**facts, "why": [problem], "stale": stale}
    from rsd_edge.selection import saturates

    why = ["its INT8 products saturate on this processor, which has no VNNI"] if saturates(spec) else []
    if spec.backend is Backend.TENSORRT:
        against, older = _device(bundle)
        why, stale = [*why, *against], [*stale, *older]
    return {**facts, "usable": not why, "why": why, "stale": stale}


def _device(bundle: Bundle) -> tuple[list[str], list[str]]:
    from rsd_edge.backends.tensorrt.cuda import Cuda
    from rsd_edge.backends.tensorrt.device import reasons_against, target_of
    from rsd_edge.backends.tensorrt.library import load_tensorrt

    cuda = Cuda()
    try:
        return reasons_against(bundle.manifest.get("target") or {}, target_of(load_tensorrt(), cuda))
    finally:
        cuda.close()
