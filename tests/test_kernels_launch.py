"""Cubins launched without Triton and torch: what the launcher asks of CUDA, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from rsd_edge.errors import BackendError, InputError, MissingDependencyError, ModelError
from rsd_edge.kernels import frame_ops, noise_field, norm_act
from rsd_edge.kernels.aot import build_kernels
from rsd_edge.kernels.catalogue import catalogue
from rsd_edge.kernels.launch import CudaDriver, KernelPack
from rsd_edge.kernels.manifest import check_arguments, count, describe
from rsd_edge.kernels.sequences import FrameLaunches, GroupNormLaunches
from rsd_edge.noise import gaussian_table
from rsd_edge.specs import TileSpec
from rsd_edge.tiling import plan_tiles

FEW = tuple(
    spec for spec in catalogue() if spec.name in ("prior_input-c4", "apply_contiguous", "merge_stats", "frame_tiles")
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch") / "kernels"
    build_kernels([90, 87], folder, dtypes=("fp16",), only=FEW)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class RecordingDriver:
    """Takes the place of CUDA and keeps what it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[tuple[bytes, str]] = []
        self.launches: list[tuple[Any, ...]] = []

    def load(self, cubin: bytes, entry: str) -> str:
        self.loaded.append((cubin, entry))
        return f"{entry} {len(self.loaded)}"

    def launch(
        self, function: str, grid: tuple[int, int, int], threads: int, shared: int, stream: int,
        values: Sequence[Any], types: Sequence[Any],
    ) -> None:  # fmt: skip
        self.launches.append((function, grid, threads, shared, stream, list(values), [kind.__name__ for kind in types]))


PRIOR = {"Z_Y": 1 << 40, "LQ": 512, "NOISE": 1024, "OUT": 2048, "mean_scale": 0.4, "noise_scale": 0.9, "pixels": 4096}


def test_launch_packs_arguments_in_the_kernels_order(built: Path) -> None:
    driver = RecordingDriver()
    pack = KernelPack(built, 87, driver)
    for _ in range(2):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 3}, arguments=dict(reversed(PRIOR.items())), stream=77)
    assert [entry for _, entry in driver.loaded] == ["prior_input"]
    assert driver.loaded[0][0] == (built / "sm_87/prior_input-c4-fp16-aligned.cubin").read_bytes()
    values = [*PRIOR.values(), 0, 0]
    types = ["c_void_p"] * 4 + ["c_float"] * 2 + ["c_int", "c_void_p", "c_void_p"]
    assert driver.launches == [("prior_input 1", (4, 3, 1), 128, 0, 77, values, types)] * 2


@pytest.mark.parametrize("changed", [{"pixels": 4097}, {"LQ": 520}])
def test_launch_takes_the_other_build_for_odd_sizes_and_addresses(built: Path, changed: dict[str, int]) -> None:
    driver = RecordingDriver()
    KernelPack(built, 87, driver).launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments={**PRIOR, **changed})
    assert driver.loaded[0][0] == (built / "sm_87/prior_input-c4-fp16-any.cubin").read_bytes()
    assert driver.launches[0][1] == (4 + (changed.get("pixels", 0) > 4096), 1, 1)


def test_launch_counts_products_of_sizes(built: Path) -> None:
    driver = RecordingDriver()
    arguments = {"X": 16, "OUT": 32, "SCALE": 48, "SHIFT": 64, "pixels": 4096}
    sizes = {"n": 3, "channels": 40}
    KernelPack(built, 87, driver).launch("apply_contiguous", dtype="fp16", sizes=sizes, arguments=arguments)
    assert driver.launches[0][1] == (120, 2, 1)


def test_launch_refuses_what_does_not_fit(built: Path, tmp_path: Path) -> None:
    pack = KernelPack(built, 87, RecordingDriver())
    arguments = {("pixel" if name == "pixels" else name): value for name, value in PRIOR.items()}
    with pytest.raises(InputError, match=r"lacks arguments \['pixels'\] and does not know \['pixel'\]"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments=arguments)
    with pytest.raises(InputError, match="needs the size 'n'"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={}, arguments=PRIOR)
    wrong: dict[str, tuple[Any, str]] = {
        "pixels": (1 << 31, "pixels is 2147483648; it must lie between 1 and 268435455"),
        "LQ": (0, "LQ is 0; it must lie between 1 and"),
        "mean_scale": (float("nan"), "mean_scale is nan; it must be a finite number"),
        "noise_scale": ("0.9", "noise_scale is '0.9'; it must be a finite number"),
    }
    for name, (value, said) in wrong.items():
        with pytest.raises(InputError, match=said):
            pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments={**PRIOR, name: value})
    for value in (4096.5, "4096"):
        with pytest.raises(InputError, match=r"pixels is .*; it must be an integer"):
            pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments={**PRIOR, "pixels": value})
    with pytest.raises(InputError, match=r"\['pixels'\] are arguments already; leave them out of sizes"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1, "pixels": 9}, arguments=PRIOR)
    with pytest.raises(InputError, match="LQ is at 513, which is no multiple of the 2 bytes of fp16"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments={**PRIOR, "LQ": 513})
    with pytest.raises(InputError, match="n is 0; it must lie between 1 and"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 0}, arguments=PRIOR)
    with pytest.raises(InputError, match="grid of"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 70000}, arguments=PRIOR)
    with pytest.raises(InputError, match=r"no kernel prior_input-c4 for fp32; it has it for fp16$"):
        pack.launch("prior_input-c4", dtype="fp32", sizes={"n": 1}, arguments=PRIOR)
    with pytest.raises(InputError, match=r"names like it are prior_input-c4, [^,]*, [^,]*$"):
        pack.launch("prior_input", dtype="fp16", sizes={"n": 1}, arguments=PRIOR)
    with pytest.raises(ModelError, match="no kernels for sm_120, only for 87, 90"):
        KernelPack(built, 120, RecordingDriver())
    with pytest.raises(ModelError, match="run rsd-edge build-kernels"):
        KernelPack(tmp_path, 87, RecordingDriver())


STATS = {
    "PARTIALS": 16, "WEIGHT": 32, "BIAS": 48, "SCALE": 64, "SHIFT": 80, "groups": 1, "group_size": 64, "parts": 4,
    "stride": 16, "epsilon": 1e-6,
}  # fmt: skip
TILES = {
    "FRAME": 16, "OUT": 32, "height": 9, "width": 14, "columns": 1, "tile_h": 24, "tile_w": 40, "stride_y": 10,
    "stride_x": 20, "halo": 0, "pixels": 960, "lanes": 72,
}  # fmt: skip


def test_launch_refuses_what_the_cubin_was_not_compiled_for(built: Path) -> None:
    driver = RecordingDriver()
    pack = KernelPack(built, 87, driver)
    pack.launch("merge_stats", dtype="fp16", sizes={"n": 1}, arguments=STATS)
    pack.launch("frame_tiles", dtype="fp16", sizes={"tiles": 1}, arguments=TILES)
    assert [launch[1] for launch in driver.launches] == [(1, 1, 1), (2, 1, 1)]
    with pytest.raises(InputError, match="group_size is 128; it must lie between 1 and 64"):
        pack.launch("merge_stats", dtype="fp16", sizes={"n": 1}, arguments={**STATS, "group_size": 128})
    with pytest.raises(InputError, match="stride is 16; it must be at least 17 here"):
        pack.launch("merge_stats", dtype="fp16", sizes={"n": 1}, arguments={**STATS, "parts": 17})
    with pytest.raises(InputError, match="lanes is 60; with these sizes it must be 72"):
        pack.launch("frame_tiles", dtype="fp16", sizes={"tiles": 1}, arguments={**TILES, "lanes": 60})
    huge = {"tile_h": 1 << 15, "tile_w": 1 << 15, "pixels": 1 << 30, "lanes": 1 << 26}
    with pytest.raises(InputError, match="pixels is beyond 536870911; use smaller tiles"):
        pack.launch("frame_tiles", dtype="fp16", sizes={"tiles": 1}, arguments={**TILES, **huge})
    assert len(driver.launches) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no kernels that can be read"),
        ("[]", "has no format"),
        ('{"format": 1}', "has format 1, this version reads 2"),
        ('{"format": 2}', "the manifest lacks a valid 'kernels'"),
        ('{"format": 2, "kernels": {}}', "the manifest lacks a valid 'kernels'"),
        (
            '{"format": 2, "kernels": [{}], "noise_table": {"file": "", "sha256": ""}}',
            r"\[0\] lacks a valid 'name'",
        ),
        (
            '{"format": 2, "kernels": [3], "noise_table": {"file": "", "sha256": ""}}',
            r"\[0\] lacks a valid 'name'",
        ),
        ('{"format": 2, "kernels": [], "noise_table": {"file": "", "sha256": ""}}', "has no kernels"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        KernelPack(tmp_path, 87, RecordingDriver())


@pytest.mark.parametrize(
    ("part", "value"),
    [("threads", "128"), ("grid", [[{"size": "n"}]]), ("arguments", [{"name": "X"}]), ("products", [3]), ("sm", True)],
)
def test_a_damaged_entry_is_named(built: Path, tmp_path: Path, part: str, value: Any) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    manifest["kernels"][1][part] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"damaged: kernels\[1\].* lacks a valid"):
        KernelPack(tmp_path, 87, RecordingDriver())


def test_the_noise_table_is_that_of_the_runtime(built: Path) -> None:
    table = np.frombuffer(KernelPack(built, 87, RecordingDriver()).noise_table(), "<i2")
    np.testing.assert_array_equal(table, gaussian_table())


def test_a_damaged_cubin_is_not_loaded(built: Path, tmp_path: Path) -> None:
    for name, data in files(built).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data + b"\0" if name.endswith(".cubin") else data)
    driver = RecordingDriver()
    with pytest.raises(ModelError, match="damaged: its hash differs"):
        KernelPack(tmp_path, 87, driver).launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments=PRIOR)
    assert not driver.loaded


WITHOUT_TRITON = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "triton"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""
LAUNCH = """
from pathlib import Path
import rsd_edge.kernels.sequences
from rsd_edge.kernels.launch import KernelPack
KernelPack(Path(sys.argv[1]), 87, None)
"""


def test_the_launcher_needs_neither_triton_nor_torch(built: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON + LAUNCH, str(built)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209


class FakeCuda(ModuleType):
    """cuda.bindings.driver as far as the launcher uses it."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.calls: list[tuple[Any, ...]] = []
        self.status = Status.CUDA_SUCCESS

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            return (self.status, name) if name in ("cuModuleLoadData", "cuModuleGetFunction") else (self.status,)

        return call


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake, package = FakeCuda(), ModuleType("cuda.bindings")
    package.driver = fake  # type: ignore[attr-defined]
    for name, module in (("cuda", ModuleType("cuda")), ("cuda.bindings", package), ("cuda.bindings.driver", fake)):
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_the_driver_loads_and_launches_through_cuda_bindings(built: Path, cuda: FakeCuda) -> None:
    pack = KernelPack(built, 87, CudaDriver())
    pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 3}, arguments=PRIOR, stream=77)
    assert [call[0] for call in cuda.calls] == ["cuInit", "cuModuleLoadData", "cuModuleGetFunction", "cuLaunchKernel"]
    assert cuda.calls[2][1:] == ("cuModuleLoadData", b"prior_input")
    function, *numbers, parameters, extra = cuda.calls[3][1:]
    assert function == "cuModuleGetFunction"
    assert numbers == [4, 3, 1, 128, 1, 1, 0, 77]
    assert parameters[0] == (*PRIOR.values(), 0, 0)
    assert extra == 0


def test_what_cuda_refuses_is_an_error(built: Path, cuda: FakeCuda) -> None:
    pack = KernelPack(built, 87, CudaDriver())
    cuda.status = Status.CUDA_ERROR_NO_BINARY_FOR_GPU
    with pytest.raises(BackendError, match="CUDA refused: CUDA_ERROR_NO_BINARY_FOR_GPU"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 3}, arguments=PRIOR)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rsd-edge\[cubins\]'"):
        CudaDriver()


class RecordingPack:
    """Checks launches against the catalogue as KernelPack does, and keeps their names, grids and arguments."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, list[int], dict[str, Any]]] = []

    def launch(
        self, name: str, *, dtype: str, sizes: dict[str, int], arguments: dict[str, Any], stream: int = 0
    ) -> None:
        spec = next(spec for spec in catalogue() if spec.name == name)
        entry = describe(spec, dtype, aligned=True)
        check_arguments(entry, arguments, sizes)
        known = {**arguments, **sizes}
        self.launches.append((name, [count(entry, axis, known) for axis in entry["grid"]], arguments))


def operator_launches(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]
) -> list[tuple[str, list[int], list[Any]]]:
    """What the torch operators would start: names of functions, grids and numbers."""
    seen: list[tuple[str, list[int], list[Any]]] = []

    def note(module: str, kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        seen.append((kernel, list(grid), [value for value in arguments if isinstance(value, (int, float))]))

    for module in (frame_ops, noise_field, norm_act):
        monkeypatch.setattr(module, "launch", note)
        monkeypatch.setattr(module, "runs_reference", lambda *_: False)
        monkeypatch.setattr(module, "check_implementation", lambda *_: None)
    run()
    return seen


def numbers(pack: RecordingPack) -> list[tuple[str, list[int], list[Any]]]:
    """Without addresses, in the kernel's order."""
    rows = []
    for name, grid, arguments in pack.launches:
        spec = next(spec for spec in catalogue() if spec.name == name)
        plain = [arguments[key] for key, kind in spec.arguments.items() if not kind.startswith("*")]
        rows.append((spec.function, grid, plain))
    return rows


@pytest.mark.parametrize(("height", "width", "size"), [(61, 83, 40), (96, 160, 64)])
def test_a_frame_is_launched_as_by_the_operators(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, size: int
) -> None:
    plan = plan_tiles(height, width, TileSpec(size=size, halo=8, feather=2, fixed=True))
    pack = RecordingPack()
    frame = FrameLaunches(pack, plan, "fp16", "fp32", "fp16")
    frame.cut(frame=16, tiles=32)
    frame.draw(noise=48, seeds=64, origins=80, table=96, channels=5)
    frame.merge(detail=112, frame=16, strength=128, not_finite=132, out=144)
    image, detail = torch.zeros(height, width, 3, dtype=torch.uint8), torch.zeros(plan.count, 3, 4 * size, 4 * size)
    field = torch.zeros(plan.count, dtype=torch.int64), torch.tensor(frame.origins, dtype=torch.int32)

    def run() -> None:
        frame_ops.frame_tiles(image, plan, implementation="triton")
        noise_field.noise_field(*field, 5, size, size, implementation="triton")
        flag = torch.zeros(1, dtype=torch.int32)
        frame_ops.merge_tiles(detail, image, torch.ones(1), flag, plan, implementation="triton")

    assert numbers(pack) == operator_launches(monkeypatch, run)


@pytest.mark.parametrize("last", [False, True])
def test_group_norm_is_launched_as_by_the_operator(monkeypatch: pytest.MonkeyPatch, last: bool) -> None:
    pack = RecordingPack()
    norm = GroupNormLaunches(pack, 2, 96, 47 * 61, 3, "fp16", last=last)
    norm.run(x=16, out=32, weight=48, bias=64, partials=80, scale=96, shift=112)
    x, ones = torch.zeros(2, 96, 47, 61), torch.ones(96)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    run = partial(norm_act.group_norm_silu, x, ones, ones, 3, implementation="triton")
    assert numbers(pack) == operator_launches(monkeypatch, run)
    with pytest.raises(InputError, match="96 channels do not divide into 5 groups"):
        GroupNormLaunches(pack, 2, 96, 9, 5, "fp16")
