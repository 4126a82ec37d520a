"""Cubins launched without Triton and torch: what the launcher asks of CUDA, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("triton")

from rsd_edge.errors import BackendError, InputError, MissingDependencyError, ModelError
from rsd_edge.kernels.aot import build_kernels
from rsd_edge.kernels.catalogue import catalogue
from rsd_edge.kernels.launch import CudaDriver, KernelPack

FEW = tuple(spec for spec in catalogue() if spec.name in ("prior_input-c4", "apply_contiguous"))


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
    with pytest.raises(InputError, match="beyond 32 bits"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments={**PRIOR, "pixels": 1 << 31})
    with pytest.raises(InputError, match="LQ is at 513, which is no multiple of the 2 bytes of fp16"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 1}, arguments={**PRIOR, "LQ": 513})
    with pytest.raises(InputError, match="grid of"):
        pack.launch("prior_input-c4", dtype="fp16", sizes={"n": 70000}, arguments=PRIOR)
    with pytest.raises(InputError, match=r"no kernel prior_input-c4 for fp32; the folder has .*prior_input-c4 fp16"):
        pack.launch("prior_input-c4", dtype="fp32", sizes={"n": 1}, arguments=PRIOR)
    with pytest.raises(ModelError, match="no kernels for sm_120, only for 87, 90"):
        KernelPack(built, 120, RecordingDriver())
    with pytest.raises(ModelError, match="run rsd-edge build-kernels"):
        KernelPack(tmp_path, 87, RecordingDriver())


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
