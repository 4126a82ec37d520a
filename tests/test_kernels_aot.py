"""Kernels compiled without a GPU: what ptxas says of them, the folder, the manifest and its launcher."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("triton")

from rsd_edge.cli import main
from rsd_edge.errors import InputError, OutputError
from rsd_edge.kernels.aot import Compiled, build_kernels, compile_kernel
from rsd_edge.kernels.catalogue import DTYPES, MERGE_COLUMNS, KernelSpec, catalogue
from rsd_edge.kernels.implementation import triton_kernels
from rsd_edge.kernels.manifest import pointer_shapes

FEW = tuple(spec for spec in catalogue() if spec.name in ("prior_input-c4", "apply_contiguous"))
TARGETS = (75, 80, 86, 87, 89, 90, 100, 110, 120)
NO_STREAM = ("noise_field",)
"""Reads no tensor: random numbers select entries of a table. What counts there is that stores are vectors."""
SCALAR_STORES = ("rsd_partials", "stats_contiguous", "stats_channels_last", "merge_stats",
                 *(f"merge_tiles-x{block}" for block in MERGE_COLUMNS))  # fmt: skip
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


def check_resources(spec: KernelSpec, compiled: Compiled, where: str, most: int = 168) -> None:
    """most: 168 registers are three blocks of 128 threads in a multiprocessor, 200 two of them."""
    assert compiled.spill_bytes == 0, where
    assert compiled.stack_bytes == 0, where
    assert 0 < compiled.registers <= most, f"{where}: too few blocks of threads fit"
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
        check_resources(spec, compiled, f"{spec.name} {dtype} sm_{sm}", most=168 if aligned else 200)
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


def test_every_pointer_has_a_shape_of_sizes_that_the_manifest_knows() -> None:
    """So that who launches can allocate: n, groups and the like are the sizes that grids name, too."""
    elsewhere = {"n", "channels", "groups", "tiles", "steps", "size", "ceil"}
    for spec in catalogue():
        shapes = pointer_shapes(spec)
        assert set(shapes) == {name for name, kind in spec.arguments.items() if kind.startswith("*")} | (
            set(shapes) & set(spec.constants)
        ), spec.name
        named = {word for shape in shapes.values() for extent in shape for word in re.findall("[a-z_]+", extent)}
        assert named <= set(spec.arguments) | elsewhere, spec.name
        function = getattr(triton_kernels(spec.module), spec.function)
        assert [name for name in function.arg_names if name not in spec.constants] == list(spec.arguments), spec.name
        rules = [*spec.grid, *spec.equal.values(), *spec.at_least.values()]
        assert {factor.size for rule in rules for factor in rule} <= set(spec.arguments) | elsewhere, spec.name


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
    assert entry["grid"] == [[{"size": "pixels", "per": 1024, "times": 1}], [{"size": "n", "per": 1, "times": 1}]]
    assert entry["arguments"][1]["shape"] == ["n", "3", "pixels"]
    assert manifest["sequences"]["group_norm_silu, contiguous"] == [
        "stats_contiguous",
        "merge_stats",
        "apply_contiguous",
    ]
    assert entry["threads"] == 128
    assert entry["scratch_pointers"] == 2
    assert entry["spill_bytes"] == entry["stack_bytes"] == entry["shared_bytes"] == 0
    assert 0 < entry["registers"] < 255
    assert entry["loads"] == {"v4.b32": 12}
    assert entry["stores"] == {"v4.b32": 8}
    assert {"triton_noising.py", "catalogue.py"} <= set(manifest["sources"])


def test_a_folder_that_holds_something_is_left_alone(built: Path) -> None:
    before = files(built)
    with pytest.raises(OutputError, match="it exists; choose a new folder"):
        build_kernels([87], built, only=FEW)
    assert files(built) == before


WITHOUT_TRITON = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "triton"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""


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
