"""Kernels compiled without a GPU: what ptxas says of them, the folder, the manifest and its launcher."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from rsd_edge.cli import main
from rsd_edge.errors import InputError, ModelError, OutputError
from rsd_edge.kernels.aot import Compiled, build_kernels, compile_kernel
from rsd_edge.kernels.catalogue import DTYPES, KernelSpec, catalogue
from rsd_edge.kernels.launch import KernelPack

FEW = tuple(spec for spec in catalogue() if spec.name in ("prior_input-c4", "apply_contiguous"))
TARGETS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
NO_STREAM = ("noise_field",)
"""Reads no tensor: random numbers select entries of a table. What counts there is that stores are vectors."""
SCALAR_STORES = ("rsd_partials", "stats_contiguous", "stats_channels_last", "merge_stats", "merge_tiles")
"""A few sums each, a number a channel, or three words for an LR pixel."""


def widest_vector(accesses: dict[str, int]) -> int:
    """Bytes."""
    return max((int(name[1]) * int(name[4:]) // 8 for name in accesses if "." in name), default=0)


def scalars(accesses: dict[str, int]) -> int:
    """Instructions of one thread."""
    return sum(count for name, count in accesses.items() if "." not in name)


def check_vectors(spec: KernelSpec, compiled: Compiled, where: str) -> None:
    if spec.name not in NO_STREAM:
        assert widest_vector(compiled.loads) >= 8, where
    if not spec.scattered:
        # A sample's timestep and at most four coefficients. Of any tensor without vectors, a thread reads 8 or more.
        assert scalars(compiled.loads) <= 5, where
    if spec.name not in SCALAR_STORES:
        assert widest_vector(compiled.stores) >= 8, where
        assert scalars(compiled.stores) == 0, where


def check_resources(spec: KernelSpec, compiled: Compiled, where: str) -> None:
    assert compiled.spill_bytes == 0, where
    assert compiled.stack_bytes == 0, where
    assert 0 < compiled.registers <= 168, f"{where}: fewer than three blocks of 128 threads fit"
    assert compiled.shared_bytes <= 48 << 10, f"{where}: more needs an attribute that the launcher does not set"


@pytest.mark.parametrize("spec", catalogue(), ids=lambda spec: spec.name)
def test_no_spills_and_vector_loads_on_one_architecture(spec: KernelSpec) -> None:
    compiled = compile_kernel(spec, "fp16", 87)
    check_resources(spec, compiled, spec.name)
    check_vectors(spec, compiled, spec.name)


# Where ptxas once spilled.
@pytest.mark.parametrize("name", ["prior_input-c4", "rsd_backward", "stats_contiguous"])
def test_odd_sizes_do_not_spill_on_blackwell(name: str) -> None:
    spec = next(spec for spec in catalogue() if spec.name == name)
    check_resources(spec, compile_kernel(spec, "fp16", 110, aligned=False), name)


@pytest.mark.slow
@pytest.mark.parametrize("sm", TARGETS)
@pytest.mark.parametrize("aligned", [True, False])
def test_no_spills_and_vector_loads_everywhere(sm: int, aligned: bool) -> None:
    jobs = [(spec, dtype) for spec in catalogue() for dtype in (DTYPES if spec.typed else DTYPES[:1])]
    specs, dtypes = zip(*jobs, strict=True)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        built = list(pool.map(partial(compile_kernel, sm=sm, aligned=aligned), specs, dtypes))
    for spec, dtype, compiled in zip(specs, dtypes, built, strict=True):
        check_resources(spec, compiled, f"{spec.name} {dtype} sm_{sm}")
        if aligned:
            check_vectors(spec, compiled, f"{spec.name} {dtype} sm_{sm}")


@pytest.mark.parametrize("name", ["forward_noise-c4", "merge_stats", "apply_channels_last", "noise_field"])
def test_scalar_accesses_would_be_noticed(name: str) -> None:
    """Sizes that are no multiple of 16 leave no vectors, so the assertions above can fail."""
    spec = next(spec for spec in catalogue() if spec.name == name)
    with pytest.raises(AssertionError):
        check_vectors(spec, compile_kernel(spec, "fp16", 87, aligned=False), name)


def test_exceptions_give_their_reason() -> None:
    scattered = {
        spec.function if spec.module != "noising" else spec.name[:19] for spec in catalogue() if spec.scattered
    }
    assert scattered == {"noise_field", "forward_noise_drawn", "frame_tiles", "merge_tiles"}


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(InputError, match="sm_101 is unknown; it must be one of 75, 80"):
        compile_kernel(FEW[0], "fp16", 101)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aot") / "kernels"
    build_kernels([90, 87], folder, dtypes=("fp16",), only=FEW)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_two_builds_have_the_same_bytes(built: Path, tmp_path: Path) -> None:
    build_kernels([87, 90], tmp_path / "again", dtypes=("fp16",), only=FEW)
    assert files(tmp_path / "again") == files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]  # no temporary folder stays


def test_another_process_elsewhere_builds_the_same_bytes(built: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from rsd_edge.kernels.aot import build_kernels\n"
        "from rsd_edge.kernels.catalogue import catalogue\n"
        f"few = [spec for spec in catalogue() if spec.name in {[spec.name for spec in FEW]}]\n"
        "build_kernels([87, 90], Path('elsewhere/kernels'), dtypes=('fp16',), only=few)\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert files(tmp_path / "elsewhere" / "kernels") == files(built)


def test_the_manifest_says_how_to_launch(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert set(manifest["ptxas"]) == {"ptxas"}
    assert len(manifest["kernels"]) == 2 * 2 * len(FEW)
    for entry in manifest["kernels"]:
        assert hashlib.sha256((built / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    (entry,) = (e for e in manifest["kernels"] if (e["name"], e["sm"], e["aligned"]) == ("prior_input-c4", 87, True))
    assert entry["entry"] == "prior_input"
    names = ["Z_Y", "LQ", "NOISE", "OUT", "mean_scale", "noise_scale", "pixels"]
    assert [argument["name"] for argument in entry["arguments"]] == names
    assert [argument["type"] for argument in entry["arguments"]] == ["*fp16"] * 4 + ["fp32"] * 2 + ["i32"]
    assert [argument["multiple_of"] for argument in entry["arguments"]] == [16] * 4 + [1, 1, 16]
    assert entry["grid"] == [{"sizes": ["pixels"], "per": 1024}, {"sizes": ["n"], "per": 1}]
    assert entry["threads"] == 128
    assert entry["scratch_pointers"] == 2
    assert entry["spill_bytes"] == 0


def test_a_folder_that_holds_something_is_left_alone(built: Path) -> None:
    before = files(built)
    with pytest.raises(OutputError, match="it exists; choose a new folder"):
        build_kernels([87], built, only=FEW)
    assert files(built) == before


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


def test_building_without_triton_says_what_to_install(tmp_path: Path) -> None:
    build = "from rsd_edge.cli import main\nmain(['build-kernels', '--sm', '87', '-o', 'kernels'])"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON + build], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "error: rsd-edge build-kernels needs 'triton'; run: pip install 'rsd-edge[kernels]'\n"


def test_the_command_refuses_before_it_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (("87,x", "write 87,90"), ("101", "sm_101 is unknown")):
        with pytest.raises(SystemExit, match="2"):
            main(["build-kernels", "--sm", words, "-o", str(tmp_path / "kernels")])
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_builds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["build-kernels", "--sm", "110", "--dtype", "fp16", "-o", str(tmp_path / "kernels")])
    manifest = json.loads((tmp_path / "kernels" / "manifest.json").read_text())
    assert manifest["ptxas"].keys() == {"ptxas-blackwell"}
    assert not any(entry["spill_bytes"] for entry in manifest["kernels"])
    assert f"{len(manifest['kernels'])} cubins, 0 of which spill" in capsys.readouterr().out
