"""Kernels compiled ahead of time, without a GPU: cubins by architecture, and a manifest that says how to launch."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from rsd_edge.errors import BackendError, InputError, OutputError
from rsd_edge.kernels import catalogue as catalogue_module
from rsd_edge.kernels.catalogue import DTYPES, KernelSpec, catalogue
from rsd_edge.kernels.implementation import triton_kernels
from rsd_edge.kernels.manifest import FORMAT, MANIFEST, NOISE_TABLE, POINTER_ALIGNMENT, SEQUENCES, describe
from rsd_edge.noise import gaussian_table
from rsd_edge.stream.atomic import make_folder, output_error, write_json

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
"""Compute capabilities that the ptxas of Triton 3.7 knows."""

_DIVISIBLE = [["tt.divisibility", POINTER_ALIGNMENT]]
_RESOURCES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture and dtype."""

    entry: str
    cubin: bytes
    ptx: str
    shared_bytes: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    loads: dict[str, int]
    """Of global memory, in the code of one thread: how many instructions of each PTX width, as {"v4.b32": 12}."""
    stores: dict[str, int]


def compile_kernel(spec: KernelSpec, dtype: str, sm: int, *, aligned: bool = True) -> Compiled:
    """Compile one kernel and ask ptxas what it takes.

    sm: 90 for sm_90; dtype: fp32, fp16 or bf16. aligned: pointers and the marked scalars are multiples of 16. Raises
    InputError for an architecture that ptxas does not know, BackendError under Triton's interpreter.
    """
    _check_architecture(sm)
    function = getattr(triton_kernels(spec.module), spec.function)
    if not isinstance(function, JITFunction):
        raise BackendError("kernels cannot be compiled under Triton's interpreter; unset TRITON_INTERPRET")
    source = _source(spec, function, dtype, aligned)
    # A cache of its own: a kernel is really compiled, whatever lies in the user's cache.
    with knobs.cache.scope(), knobs.compilation.scope(), tempfile.TemporaryDirectory() as folder:
        knobs.cache.dir = folder
        knobs.compilation.disable_line_info = True  # paths of sources would make the bytes differ between machines
        try:
            options = {"num_warps": spec.warps(aligned), "maxnreg": spec.registers}
            built = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
        except (triton.TritonError, RuntimeError) as error:
            raise BackendError(
                f"kernel {spec.name} {dtype} does not compile for sm_{sm}: {' '.join(str(error).split())[:300]}; "
                "use the version of Triton in constraints.txt"
            ) from error
        ptx, cubin = built.asm["ptx"], built.asm["cubin"]
        stack, spills, registers = _resources(ptx, sm, Path(folder))
    return Compiled(
        entry=built.metadata.name,
        cubin=cubin,
        ptx=ptx,
        shared_bytes=built.metadata.shared,
        registers=registers,
        stack_bytes=stack,
        spill_bytes=spills,
        loads=_accesses("ld", ptx),
        stores=_accesses("st", ptx),
    )


def build_kernels(
    architectures: Iterable[int],
    output: Path,
    *,
    dtypes: Iterable[str] = DTYPES,
    only: Iterable[KernelSpec] | None = None,
) -> dict[str, Any]:
    """Write `output`/sm_<n>/<kernel>.cubin and `output`/manifest.json; returns the manifest.

    Each kernel is built twice: `aligned`, and for sizes that are no multiple of 16. The same sources and versions give
    the same bytes. `output` must not exist, or be empty; it appears whole or not at all. Raises InputError,
    BackendError, OutputError.
    """
    wanted, chosen = sorted(set(architectures)), sorted(set(dtypes), key=DTYPES.index)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"cannot write {output}: it exists; choose a new folder or remove it")
    for sm in wanted:
        _check_architecture(sm)
    make_folder(output.parent)
    specs = tuple(catalogue() if only is None else only)
    try:
        with tempfile.TemporaryDirectory(prefix=".rsd-edge-", dir=output.parent) as temporary:
            fresh = Path(temporary) / "kernels"
            entries = [entry for sm in wanted for entry in _write_architecture(fresh, sm, specs, chosen)]
            manifest = {
                "format": FORMAT,
                "triton": triton.__version__,
                "ptxas": {tool.name: tool.version for tool in _tools(wanted)},
                "sources": _source_hashes(),
                "sequences": SEQUENCES,
                "noise_table": _write_table(fresh),
                "kernels": entries,
            }
            write_json(fresh / MANIFEST, manifest)
            if output.exists():
                output.rmdir()
            fresh.rename(output)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(output, error) from error
    return manifest


def _check_architecture(sm: int) -> None:
    if sm not in ARCHITECTURES:
        raise InputError(f"sm_{sm} is unknown; it must be one of {', '.join(map(str, ARCHITECTURES))}")


def _write_architecture(
    folder: Path, sm: int, specs: Sequence[KernelSpec], dtypes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    make_folder(folder / f"sm_{sm}")
    for spec in specs:
        for dtype in dtypes if spec.typed else DTYPES[:1]:
            for aligned in (True, False):
                yield _write(folder, spec, dtype, sm, aligned)


@dataclass(frozen=True)
class _Tool:
    name: str
    path: str
    version: str


def _tools(architectures: Iterable[int]) -> list[_Tool]:
    return sorted({_tool(sm) for sm in architectures}, key=lambda tool: tool.name)


def _tool(sm: int) -> _Tool:
    found = knobs.nvidia.ptxas_blackwell if sm >= 100 else knobs.nvidia.ptxas
    return _Tool(os.path.basename(found.path), found.path, found.version)


def _source(spec: KernelSpec, function: JITFunction[Any], dtype: str, aligned: bool) -> ASTSource:
    signature, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in spec.constants:
            signature[name] = "constexpr"
            continue
        kind, _, multiple = spec.arguments[name].partition("/")
        signature[name] = kind.replace("D", dtype)
        if aligned and (multiple or kind.startswith("*")):
            attributes[(index,)] = _DIVISIBLE
    return ASTSource(function, signature, dict(spec.constants), attributes)


def _resources(ptx: str, sm: int, folder: Path) -> tuple[int, int, int]:
    """Stack and spilled bytes, and registers, in the words of ptxas."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    options = ["-v", "--regAllocOptLevel=2", f"--gpu-name={_gpu_name(sm)}"]  # those with which Triton calls it
    command = [_tool(sm).path, *options, str(source), "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    sizes, registers = _RESOURCES.search(said), _REGISTERS.search(said)
    if sizes is None or registers is None:
        raise BackendError(f"ptxas did not report registers and spills for sm_{sm}; it said: {' '.join(said.split())}")
    stack, stores, loads = map(int, sizes.groups())
    return stack, stores + loads, int(registers.group(1))


def _gpu_name(sm: int) -> str:
    """Triton's own target name: architecture-specific from Hopper on."""
    return f"sm_{sm}a" if sm >= 90 else f"sm_{sm}"


def _accesses(instruction: str, ptx: str) -> dict[str, int]:
    found = Counter(re.findall(rf"\b{instruction}\.global(?:\.[a-z][a-z_:]*\w*)*?\.((?:v\d\.)?[bsuf]\d+)\b", ptx))
    return dict(sorted(found.items()))


def _write(folder: Path, spec: KernelSpec, dtype: str, sm: int, aligned: bool) -> dict[str, Any]:
    compiled = compile_kernel(spec, dtype, sm, aligned=aligned)
    parts = [spec.name, dtype if spec.typed else "", "aligned" if aligned else "any"]
    file = Path(f"sm_{sm}") / f"{'-'.join(filter(None, parts))}.cubin"
    (folder / file).write_bytes(compiled.cubin)
    resources = asdict(compiled)
    del resources["cubin"], resources["ptx"]
    return {
        **describe(spec, dtype, aligned=aligned),
        "sm": sm,
        "file": file.as_posix(),
        "sha256": hashlib.sha256(compiled.cubin).hexdigest(),
        **resources,
    }


def _write_table(folder: Path) -> dict[str, Any]:
    data = gaussian_table().astype("<i2").tobytes()
    (folder / NOISE_TABLE).write_bytes(data)
    return {"file": NOISE_TABLE, "type": "i16", "shape": [len(data) // 2], "sha256": hashlib.sha256(data).hexdigest()}


def _source_hashes() -> dict[str, str]:
    names = sorted({spec.module for spec in catalogue()})
    files = [Path(str(module.__file__)) for module in (catalogue_module, *map(triton_kernels, names))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
