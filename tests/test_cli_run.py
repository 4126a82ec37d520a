from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rsd_edge import SuperResolver, __version__
from rsd_edge.bundle import BuildRecord, load_bundle, resolve_engine, write_bundle
from rsd_edge.cli import main
from rsd_edge.cli import run as run_command
from rsd_edge.machine import cpu_name, int8_weight_bits
from rsd_edge.selection import Candidate, Choice
from rsd_edge.specs import EngineSpec, Precision
from rsd_edge.stream.headers import sniff_format
from rsd_edge.stream.images import read_image, write_image

Image = npt.NDArray[np.uint8]


class FakeResolver:
    """Bicubic, with the arguments of `SuperResolver`; remembers how it was loaded and called."""

    loaded: tuple[str, dict[str, Any]]
    calls: list[dict[str, Any]]
    choice: Choice | None = None

    @classmethod
    def load(cls, model: str, **options: Any) -> FakeResolver:
        cls.loaded, cls.calls = (model, options), []
        return cls()

    def __enter__(self) -> FakeResolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def record(self) -> dict[str, Any]:
        return self.choice.record() if self.choice else {}

    def bands(
        self, image: Image, *, progress: Callable[[int, int], None], **options: Any
    ) -> Generator[Image, None, None]:
        self.calls.append(options)
        progress(1, 1)
        yield np.asarray(cv2.resize(image, options["size"], interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeResolver]:
    monkeypatch.setattr(run_command, "SuperResolver", FakeResolver)
    return FakeResolver


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with photographs in in/."""
    monkeypatch.chdir(tmp_path)
    for name, size in {"in/a.png": (6, 8), "in/b.jpg": (5, 7), "in/sub/写真.bmp": (1, 1)}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_image(Path(name), np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8))
    return tmp_path


def rsd_edge(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def files_in(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.usefixtures("fake", "folder")
def test_one_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert rsd_edge("run", "in/a.png", "-o", "x.png") == 0
    assert np.array_equal(read_image("x.png"), cv2.resize(read_image("in/a.png"), (32, 24), interpolation=2))
    assert capfd.readouterr() == ("", "")  # nothing to say to a pipe


@pytest.mark.usefixtures("fake", "folder")
def test_folders() -> None:
    assert rsd_edge("run", "in", "-o", "out", "--recursive", "--format", "webp") == 0
    assert files_in("out") == ["a.webp", "b.webp", "sub/写真.webp"]


@pytest.mark.usefixtures("fake", "folder")
@pytest.mark.parametrize(
    "arguments", ["-o x.webp --format webp", "-o x.WEBP --format webp", "-o x.jpeg --format jpg", "-o x.jpg"]
)
def test_a_format_that_agrees_with_the_file_name_or_is_not_given(arguments: str) -> None:
    assert rsd_edge("run", "in/a.png", *arguments.split()) == 0
    assert sniff_format(Path(arguments.split()[1]).read_bytes()) == ("WebP" if "webp" in arguments else "JPEG")


@pytest.mark.usefixtures("fake", "folder")
def test_a_format_of_results_in_a_folder_that_looks_like_a_file() -> None:
    Path("x.jpg").mkdir()
    assert rsd_edge("run", "in/a.png", "-o", "x.jpg", "--format", "webp") == 0
    assert files_in("x.jpg") == ["a.webp"]


@pytest.mark.usefixtures("folder")
def test_options_reach_the_resolver(fake: type[FakeResolver]) -> None:
    options = (
        "--engine my/bundle --precision int8 --backend openvino --threads 3 --tile 96 --batch 2 "
        "--scale 2.5 --seed 7 --strength 0.25"
    )
    assert rsd_edge("run", "in/a.png", "-o", "x.png", *options.split()) == 0
    choice, on = {"precision": "int8", "backend": "openvino"}, {"device": None, "frame_path": None}
    assert fake.loaded == ("my/bundle", {**choice, "threads": 3, "tile": 96, "batch": 2, "steps": None, **on})
    assert fake.calls == [{"seed": 7, "strength": 0.25, "size": (20, 15)}]
    assert read_image("x.png").shape == (15, 20, 3)


@pytest.mark.usefixtures("folder")
def test_defaults(fake: type[FakeResolver]) -> None:
    assert rsd_edge("run", "in/a.png", "-o", "x.png") == 0
    choice = {"precision": None, "backend": None}
    assert fake.loaded == (
        "edge-s",
        {**choice, "threads": None, "tile": None, "batch": 1, "steps": None, "device": None, "frame_path": None},
    )
    assert fake.calls == [{"seed": 0, "strength": 1.0, "size": (32, 24)}]


@pytest.mark.usefixtures("fake", "folder")
def test_a_bad_file_among_good_ones(capfd: pytest.CaptureFixture[str]) -> None:
    Path("in/broken.png").write_bytes(Path("in/a.png").read_bytes()[:-20])
    assert rsd_edge("run", "in", "-o", "out", "--report", "reports/r.json") == 2
    assert files_in("out") == ["a.png", "b.png"]
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "error: in/broken.png is truncated; copy or download it again"
    assert lines[1].startswith("2 done, 1 failed in ")
    assert len(lines) == 2
    report = json.loads(Path("reports/r.json").read_text())
    assert [entry["status"] for entry in report["files"]] == ["done", "done", "failed"]
    assert report["settings"]["engine"] == "edge-s"
    assert report["rsd_edge"] == __version__


@pytest.mark.usefixtures("folder")
def test_skip_existing(fake: type[FakeResolver]) -> None:
    assert rsd_edge("run", "in", "-o", "out") == 0
    assert rsd_edge("run", "in", "-o", "out", "--skip-existing") == 0
    assert fake.calls == []
    Path("out/a.png").unlink()
    assert rsd_edge("run", "in", "-o", "out", "--skip-existing") == 0
    assert len(fake.calls) == 1


@pytest.mark.usefixtures("folder")
def test_sizes_and_strip_reach_the_work(fake: type[FakeResolver]) -> None:
    assert rsd_edge("run", "in/a.png", "-o", "x.png", "--size", "9X20", "--report", "r.json", "--strip") == 0
    assert rsd_edge("run", "in/a.png", "-o", "y.png", "--max-side", "12") == 0
    assert json.loads(Path("r.json").read_text())["settings"]["strip"]
    assert (read_image("x.png").shape, read_image("y.png").shape) == ((20, 9, 3), (9, 12, 3))
    assert fake.calls[-1]["size"] == (12, 9)


@pytest.mark.usefixtures("fake", "folder")
def test_losses_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    Path("in/clear.png").write_bytes(cv2.imencode(".png", rgba)[1].tobytes())
    assert rsd_edge("run", "in/clear.png", "-o", "x.jpg", "--report", "r.json") == 0
    note = "transparency laid over white, because JPEG holds none"
    assert capfd.readouterr().err == f"warning: in/clear.png: {note}\n"
    assert json.loads(Path("r.json").read_text())["files"][0]["notes"] == [note]


@pytest.mark.usefixtures("fake", "folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run gone.png -o x.png", "error: gone.png does not exist; check the spelling"),
        ("run in/a.png", "error: Missing option '-o' / '--output'. (see: rsd-edge run --help)"),
        ("run -o x.png", "error: Missing argument 'INPUT...'. (see: rsd-edge run --help)"),
        ("run in/a.png -o x.png --scale 5", "error: scale is 5; it must lie between 1 and 4"),
        ("run in/a.png -o x.png --scale 4.0000001", "error: scale is 4.0000001; it must lie between 1 and 4"),
        ("run in/a.png -o x.png --strength 1.0000001", "error: strength is 1.0000001; it must lie between 0"),
        ("run in/a.png -o x.png --scale two", "error: Invalid value for '--scale': 'two' is not a valid float."),
        ("run in/a.png -o x.png --size 33x6", "error: in/a.png: size 33x6 is more than 4 times the image of 8x6;"),
        ("run in/a.png -o x.png --size 33", "error: Invalid value for '--size': '33' is not WxH, such as 1920x1080."),
        ("run in/a.png -o x.png --max-side 9 --size 9x9", "error: --scale, --size and --max-side exclude each other;"),
        ("run in/a.png -o x.png --scale 4 --size 9x9", "error: --scale, --size and --max-side exclude each other;"),
        ("run in/a.png -o x.png --strength 2", "error: strength is 2; it must lie between 0"),
        ("run in/a.png -o x.png --precision fp8", "error: Invalid value for '--precision': 'fp8' is not one of 'fp32'"),
        ("run in/a.png -o x.png --backend ncnn", "error: Invalid value for '--backend': 'ncnn' is not one of 'onnxr"),
        ("run in/a.png -o x.gif", "error: cannot write x.gif: '.gif' is not an output format; use one of .png"),
        ("run in/a.png -o in/b.jpg/x.png", "error: cannot write into in/b.jpg: it is a file; choose a folder"),
        ("run in/a.png -o in/a.png", "error: in/a.png is an input and would be replaced"),
        ("run in/a.png -o x.jpg --format webp", "error: x.jpg ends in '.jpg' but --format is webp; drop --format"),
        ("run in/a.png -o x.jpg --format png", "error: x.jpg ends in '.jpg' but --format is png;"),
        ("run in -o in", "error: in is both input and output"),
        ("run in -o x.png", "error: x.png is one file but the input is the folder in"),
        ("run empty -o out", "error: empty contains no images"),
        ("run in/a.png -o x.png --max-pixels 47", "error: in/a.png claims 8x6 = 48 pixels, more than the limit of 47;"),
        ("run in/a.png -o x.png --report in/a.png/r/j", "error: cannot write in/a.png/r: Not a directory"),
        ("run notes.png -o x.png", "error: notes.png is not an image; convert it"),
        ("run void.png -o x.png", "error: void.png is empty; copy or download it again"),
        ("walk in", "error: No such command 'walk'."),
        ("--fast", "error: No such option"),
    ],
)
def test_bad_input_is_one_line(arguments: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("notes.png").write_text("these are no pixels")
    Path("void.png").touch()
    before = files_in(".")
    assert rsd_edge(*arguments.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert files_in(".") == before


@pytest.mark.usefixtures("folder")
def test_unknown_engine_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert rsd_edge("run", "in/a.png", "-o", "x.png", "--engine", "no-such") == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert "no-such" in err
    assert err.count("\n") == 1
    assert not Path("x.png").exists()


@pytest.mark.usefixtures("fake", "folder")
def test_interruption_keeps_finished_files_and_writes_the_report(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = FakeResolver.bands

    def interrupted(self: FakeResolver, image: Image, **options: Any) -> Iterator[Image]:
        if self.calls:
            raise KeyboardInterrupt
        return whole(self, image, **options)

    monkeypatch.setattr(FakeResolver, "bands", interrupted)
    assert rsd_edge("run", "in", "-o", "out", "--report", "r.json") == 130
    assert files_in("out") == ["a.png"]
    assert "interrupted; finished files are kept" in capfd.readouterr().err
    assert [entry["status"] for entry in json.loads(Path("r.json").read_text())["files"]] == ["done", "interrupted"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("fake", "folder")
def test_a_terminal_gets_a_bar_and_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    Path("in/broken.png").touch()
    assert rsd_edge("run", "in", "-o", "out") == 2
    text = terminal.getvalue()
    assert "3/3" in text
    assert "100%" in text
    assert text.count("Mpx/s") >= 2  # on the bar and in the summary
    assert "error: in/broken.png is empty" in text
    assert "2 done, 1 failed in " in text.splitlines()[-1]


@pytest.fixture
def choice(fake: type[FakeResolver], bundle: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the fake resolver says of the engine it chose."""

    def make(times: dict[str, float], *, remembered: bool) -> None:
        found = load_bundle(bundle)
        monkeypatch.setattr(fake, "choice", Choice(Candidate(found, found.spec), times, remembered))

    return make


@pytest.mark.usefixtures("folder")
def test_a_choice_is_told_when_it_is_made(choice: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    command = ("run", "in/a.png", "-o", "x.png", "--report", "r.json")
    choice({"fp32 on onnxruntime": 1.25, "int8 on onnxruntime": 2.5}, remembered=False)
    assert rsd_edge(*command) == 0
    told = "fp32 on onnxruntime (fp32 on onnxruntime 1.2, int8 on onnxruntime 2.5 ms a 64x64 tile, timed just now)"
    assert capfd.readouterr() == ("", f"edge-s: {told}\n")
    assert json.loads(Path("r.json").read_text())["engine"]["times_ms"]["int8 on onnxruntime"] == 2.5
    for times in ({"fp32 on onnxruntime": 1.25}, {}):  # nothing new, or nothing chosen
        choice(times, remembered=True)
        assert rsd_edge(*command) == 0
        assert capfd.readouterr() == ("", "")
    assert json.loads(Path("r.json").read_text())["engine"]["precision"] == "fp32"


@pytest.mark.usefixtures("folder")
def test_a_terminal_is_told_of_remembered_choices_too(
    choice: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    choice({"fp32 on onnxruntime": 1.25}, remembered=True)
    assert rsd_edge("run", "in/a.png", "-o", "x.png") == 0
    assert "edge-s: fp32 on onnxruntime (fp32 on onnxruntime 1.2 ms a 64x64 tile, remembered)" in terminal.getvalue()


@pytest.fixture(scope="module")
def bundle(toy_graph: Path, toy_spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("bundles"), toy_spec, toy_graph, BuildRecord()).path)


@pytest.mark.usefixtures("folder")
def test_the_report_names_the_engine_that_ran(bundle: str) -> None:
    assert rsd_edge("run", "in/a.png", "-o", "x.png", "--engine", bundle, "--report", "r.json") == 0
    report = json.loads(Path("r.json").read_text())
    assert report["engine"]["digest"] == load_bundle(bundle).digest
    assert Path(bundle).name.endswith(report["engine"]["digest"][:12])


@pytest.mark.usefixtures("folder")
def test_a_real_engine(bundle: str, photo: Callable[[int, int], Image]) -> None:
    image = photo(37, 50)
    write_image(Path("p.png"), image)
    common = ("run", "p.png", "--engine", bundle, "--threads", "1")
    assert rsd_edge(*common, "-o", "x.png", "--seed", "3") == 0
    with SuperResolver.load(bundle, threads=1) as resolver:
        assert np.array_equal(read_image("x.png"), resolver(image, seed=3))
    assert rsd_edge(*common, "-o", "again.png", "--seed", "3") == 0
    assert Path("again.png").read_bytes() == Path("x.png").read_bytes()
    assert rsd_edge(*common, "-o", "other.png", "--seed", "4") == 0
    assert Path("other.png").read_bytes() != Path("x.png").read_bytes()
    assert rsd_edge(*common, "-o", "plain.png", "--strength", "0") == 0
    assert np.array_equal(read_image("plain.png"), cv2.resize(image, (200, 148), interpolation=cv2.INTER_CUBIC))
    assert rsd_edge(*common, "-o", "half.png", "--scale", "1.5") == 0
    assert read_image("half.png").shape == (round(37 * 1.5), 75, 3)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("engine", ["the bundle", "edge-s"])
def test_a_backend_that_is_not_installed_is_one_line(
    bundle: str, engine: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    options = ("--engine", bundle if engine == "the bundle" else engine, "--backend", "openvino")
    assert rsd_edge("run", "in/a.png", "-o", "x.png", *options) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: OpenVINO cannot be imported (")
    assert err.endswith("; run: pip install 'rsd-edge[openvino]'\n")
    assert err.count("\n") == 1
    assert not Path("x.png").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("device", ["here", "Cortex-A76"])
def test_an_engine_from_another_machine_is_one_warning(
    toy_graph: Path,
    toy_spec: EngineSpec,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own would count as configured
    record = BuildRecord(device=f"{cpu_name() if device == 'here' else device}, 2 threads")
    spec = EngineSpec(toy_spec.model, precision=Precision.INT8, weight_bits=7)
    engine = write_bundle(Path("engines"), spec, toy_graph, record).path
    assert rsd_edge("run", "in", "-o", "out", "--engine", str(engine)) == 0
    out, err = capfd.readouterr()
    assert out == ""
    if device == "here":
        assert err == ""
    else:
        assert err.startswith(f"warning: {engine} was found faster than fp32 on Cortex-A76, 2 threads, but this is ")
        assert err.count("\n") == 1


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(int8_weight_bits() < 8, reason="the shipped INT8 engine would saturate on this processor")
def test_the_shipped_model_in_int8(photo: Callable[[int, int], Image]) -> None:
    image = photo(24, 32)
    write_image(Path("p.png"), image)
    options = ("--precision", "int8", "--threads", "1", "--report", "r.json")
    assert rsd_edge("run", "p.png", "-o", "x.png", *options) == 0
    engine = json.loads(Path("r.json").read_text())["engine"]
    assert (engine["precision"], engine["backend"], engine["times_ms"]) == ("int8", "onnxruntime", {})
    assert engine["digest"] == resolve_engine("edge-s", Precision.INT8).digest
    with SuperResolver.load("edge-s", precision="int8", threads=1) as resolver:
        assert np.array_equal(read_image("x.png"), resolver(image))
