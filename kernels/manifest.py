"""What `rsd-edge build-kernels` writes beside the cubins: how each kernel is launched. Needs neither Triton nor torch.

An entry of `kernels` holds, beside what the compilers said:

- `arguments`, in the kernel's order: `name`, `type` (`*fp16` is a pointer), `multiple_of` (16 for what the aligned
  build takes for granted), for integers `least` and `most`, for pointers `shape`, the extents of contiguous memory.
  SEEDS hold the bits of unsigned seeds, ORIGINS the row and column of a sample's first pixel, PARTIALS is scratch
  memory, and TABLE is the file `noise_table`.
- `grid`: for each axis a list of factors, whose product is the number of programs; a factor is
  ceil(size / per) x times, where size is an argument or one of n (samples), channels, groups, tiles.
- `equal`, `at_least`: arguments that are such a product, or not less than it. `products`: sizes whose product must not
  exceed `most`, because the kernel counts in 32 bits.
- `threads` of a program, `shared_bytes`, and `scratch_pointers`: null pointers to pass after the arguments.

`sequences` names the kernels of a whole operation in launch order. kernels/sequences.py carries two of them out.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsd_edge.errors import InputError, ModelError
from rsd_edge.kernels.catalogue import Count, KernelSpec

FORMAT = 2
MANIFEST = "manifest.json"
NOISE_TABLE = "noise_table.i16"
SEQUENCES: Mapping[str, Sequence[str]] = {
    "frame": ("frame_tiles", "noise_field", "(the network)", "merge_tiles-x<columns>"),
    "group_norm_silu, contiguous": ("stats_contiguous", "merge_stats", "apply_contiguous"),
    "group_norm_silu, channels_last": ("stats_channels_last", "merge_stats", "apply_channels_last"),
    "rsd_terms": ("rsd_partials", "(sums over the blocks, divided by size)"),
}
INT32_MOST = (1 << 31) - 1
POINTER_ALIGNMENT = 16
SCRATCH_POINTERS = 2
"""Triton appends two pointers to every kernel's parameters; unused ones are null."""

_POSITIVE = (1, INT32_MOST)
_ENTRY: Mapping[str, Any] = {
    "name": str, "dtype": (str, type(None)), "sm": int, "aligned": bool, "file": str, "sha256": str, "entry": str,
    "arguments": list, "grid": list, "equal": dict, "at_least": dict, "products": list, "threads": int,
    "shared_bytes": int, "scratch_pointers": int,
}  # fmt: skip
_ARGUMENT: Mapping[str, Any] = {"name": str, "type": str, "multiple_of": int}
_FACTOR: Mapping[str, Any] = {"size": str, "per": int, "times": int}
_PRODUCT: Mapping[str, Any] = {"sizes": list, "most": int}
_AGAIN = "run rsd-edge build-kernels again"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a folder. Raises ModelError for one that is missing, damaged or of another format."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no kernels that can be read: {error}; run rsd-edge build-kernels") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ModelError(f"{path} is no manifest of kernels: it has no format; {_AGAIN}")
    if manifest["format"] != FORMAT:
        raise ModelError(f"{folder} has format {manifest['format']}, this version reads {FORMAT}; {_AGAIN}")
    _require(path, "the manifest", manifest, {"kernels": list, "noise_table": dict})
    _require(path, "noise_table", manifest["noise_table"], {"file": str, "sha256": str})
    for index, entry in enumerate(manifest["kernels"]):
        _check_entry(path, f"kernels[{index}]", entry)
    return manifest


def pack_files(folder: Path, sm: int, names: Sequence[str]) -> list[str]:
    """Files of a folder, relative to it, that a pack with these kernels for one architecture is made of.

    Raises ModelError for a folder that holds no kernels, or not all of these.
    """
    manifest = read_manifest(folder)
    entries = [entry for entry in manifest["kernels"] if entry["sm"] == sm and entry["name"] in names]
    missing = sorted(set(names) - {entry["name"] for entry in entries})
    if missing:
        raise ModelError(f"{folder} has no {', '.join(missing)} for sm_{sm}; run: rsd-edge build-kernels --sm {sm}")
    return [MANIFEST, manifest["noise_table"]["file"], *(entry["file"] for entry in entries)]


def describe(spec: KernelSpec, dtype: str, *, aligned: bool) -> dict[str, Any]:
    """Of an entry, what follows from the catalogue alone. dtype: fp32, fp16 or bf16."""
    return {
        "name": spec.name,
        "dtype": dtype if spec.typed else None,
        "aligned": aligned,
        "arguments": _arguments(spec, dtype, aligned),
        "scratch_pointers": SCRATCH_POINTERS,
        "constants": dict(spec.constants),
        "threads": 32 * spec.warps(aligned),
        "grid": [_plain(axis) for axis in spec.grid],
        "equal": {name: _plain(factors) for name, factors in spec.equal.items()},
        "at_least": {name: _plain(factors) for name, factors in spec.at_least.items()},
        "products": [{"sizes": list(sizes), "most": most} for sizes, most in spec.products],
    }


def _arguments(spec: KernelSpec, dtype: str, aligned: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    shapes = pointer_shapes(spec)
    for name, text in spec.arguments.items():
        kind, _, multiple = text.partition("/")
        divisor = POINTER_ALIGNMENT if aligned and (multiple or kind.startswith("*")) else 1
        rows.append({"name": name, "type": kind.replace("D", dtype), "multiple_of": divisor})
        if kind == "i32":
            rows[-1] |= {"least": spec.least.get(name, 1), "most": spec.most.get(name, INT32_MOST)}
        elif kind.startswith("*"):
            rows[-1]["shape"] = shapes[name]
    return rows


def pointer_shapes(spec: KernelSpec) -> dict[str, list[str]]:
    """Extents of what each pointer points to, by its name."""
    shapes: dict[str, list[str]] = {}
    names: list[str] = []
    for word in spec.shapes.split():
        name, _, shape = word.partition(":")
        names.append(name)
        if shape:
            shapes |= dict.fromkeys(names, shape.split(","))
            names = []
    return shapes


def _plain(count: Count) -> list[dict[str, Any]]:
    return [asdict(factor) for factor in count]


def _check_entry(path: Path, where: str, entry: Any) -> None:
    _require(path, where, entry, _ENTRY)
    for argument in entry["arguments"]:
        integer = {"least": int, "most": int} if isinstance(argument, dict) and argument.get("type") == "i32" else {}
        _require(path, f"{where}.arguments", argument, {**_ARGUMENT, **integer})
    counts = [*entry["grid"], *entry["equal"].values(), *entry["at_least"].values()]
    for factor in (factor for count in counts for factor in (count if isinstance(count, list) else [count])):
        _require(path, f"{where}.grid", factor, _FACTOR)
    for product in entry["products"]:
        _require(path, f"{where}.products", product, _PRODUCT)


def _require(path: Path, where: str, value: Any, types: Mapping[str, Any]) -> None:
    for name, kind in types.items():
        found = value.get(name, _require) if isinstance(value, dict) else _require
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise ModelError(f"{path} is damaged: {where} lacks a valid '{name}'; {_AGAIN}")


def check_arguments(entry: Mapping[str, Any], arguments: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Raise InputError for what the cubin cannot do: wrong names, types, numbers beyond its limits, null pointers."""
    kernel, names = entry["name"], [argument["name"] for argument in entry["arguments"]]
    if set(names) != set(arguments):
        missing, unknown = sorted(set(names) - set(arguments)), sorted(set(arguments) - set(names))
        raise InputError(f"kernel {kernel} lacks arguments {missing} and does not know {unknown}")
    if twice := sorted(set(sizes) & set(arguments)):
        raise InputError(f"kernel {kernel}: {twice} are arguments already; leave them out of sizes")
    for argument in entry["arguments"]:
        _check_argument(kernel, argument, arguments[argument["name"]])
    for name, size in sizes.items():
        _check_integer(kernel, name, size, *_POSITIVE)
    known = {**arguments, **sizes}
    for name, factors in entry["equal"].items():
        if arguments[name] != (right := count(entry, factors, known)):
            raise InputError(f"kernel {kernel}: {name} is {arguments[name]}; with these sizes it must be {right}")
    for name, factors in entry["at_least"].items():
        if arguments[name] < (right := count(entry, factors, known)):
            raise InputError(f"kernel {kernel}: {name} is {arguments[name]}; it must be at least {right} here")
    for product in entry["products"]:
        if math.prod(known[size] for size in product["sizes"]) > product["most"]:
            factors = " x ".join(product["sizes"])
            raise InputError(f"kernel {kernel}: {factors} is beyond {product['most']}; use smaller tiles")


def count(entry: Mapping[str, Any], factors: Sequence[Mapping[str, Any]], known: Mapping[str, Any]) -> int:
    """The product of the factors. Raises InputError for a size that is not known."""
    for factor in factors:
        if factor["size"] not in known:
            raise InputError(f"kernel {entry['name']} needs the size '{factor['size']}'; pass it in sizes")
    return math.prod(-(-known[factor["size"]] // factor["per"]) * factor["times"] for factor in factors)


def _check_argument(kernel: str, argument: Mapping[str, Any], value: Any) -> None:
    name, kind = argument["name"], argument["type"]
    if kind == "i32":
        _check_integer(kernel, name, value, argument["least"], argument["most"])
    elif kind.startswith("*"):
        _check_integer(kernel, name, value, 1, (1 << 64) - 1)
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"kernel {kernel}: {name} is {value!r}; it must be a finite number")


def _check_integer(kernel: str, name: str, value: Any, least: int, most: int) -> None:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"kernel {kernel}: {name} is {value!r}; it must be an integer") from None
    if not least <= number <= most:
        raise InputError(f"kernel {kernel}: {name} is {number}; it must lie between {least} and {most}")
