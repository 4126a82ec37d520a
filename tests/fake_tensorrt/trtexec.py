"""trtexec as far as a line of it says how an engine is built."""

from __future__ import annotations

import shlex
from typing import Any


def settings_of(line: str, trt: Any) -> dict[str, Any]:
    """What NVIDIA's trtexec sets in the builder for these words; read in its source."""
    words = dict(word.lstrip("-").partition("=")[::2] for word in shlex.split(line)[1:])
    for name in ("onnx", "saveEngine", "skipInference", "timingCacheFile"):
        words.pop(name)
    flags = {"TF32"} - ({"TF32"} if words.pop("noTF32", None) is not None else set())
    for word, names in {
        "versionCompatible": ("VERSION_COMPATIBLE",),
        "excludeLeanRuntime": ("EXCLUDE_LEAN_RUNTIME",),
        "refit": ("REFIT",),
        "stripWeights": ("STRIP_PLAN", "REFIT_IDENTICAL"),  # the second is the default with the first
    }.items():
        flags |= set(names) if words.pop(word, None) is not None else set()
    bit = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    typed = words.pop("stronglyTyped", None) is not None or int(trt.__version__.split(".")[0]) >= 11
    pool, _, size = words.pop("memPoolSize").partition(":")
    assert pool == "workspace"
    levels = {"ampere+": "AMPERE_PLUS", "sameComputeCapability": "SAME_COMPUTE_CAPABILITY"}
    level = words.pop("hardwareCompatibilityLevel", None)
    limits = [dict(pair.split(":") for pair in words.pop(f"{name}Shapes").split(",")) for name in ("min", "opt", "max")]
    found = {
        "flags": flags,
        "limits": {"WORKSPACE": int(size) << 20},
        "network": bit if typed else 0,
        "level": int(words.pop("builderOptimizationLevel")),
        "compatibility": getattr(trt.HardwareCompatibilityLevel, levels[level]) if level else None,
        "verbosity": getattr(trt.ProfilingVerbosity, words.pop("profilingVerbosity").upper()),
        "shapes": {name: [tuple(int(n) for n in shapes[name].split("x")) for shapes in limits] for name in limits[0]},
    }
    assert words == {}
    return found
