"""`rsd-edge run --camera` as a process: how it ends, what it leaves, what it tells."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from live_doubles import WholeTileEngine
from rich.console import Console
from x11_window import ask_to_close

from rsd_edge.cli import cli, live_options, main
from rsd_edge.cli import run as run_command
from rsd_edge.cli.live_options import _check_batch, _end, _parse_capture, table
from rsd_edge.errors import CameraError, InputError, ModelError, OutputError
from rsd_edge.live.runner import RunLimits
from rsd_edge.live.statistics import Statistics
from rsd_edge.specs import TileSpec

TEST = "test:32x24@60"


def words(bundle: Path, *more: str) -> list[str]:
    return ["run", "--camera", TEST, "--engine", str(bundle), "--threads", "1", *more]


@contextmanager
def running(bundle: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", "from rsd_edge.cli import main; main()", *words(bundle, *more)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=bundle.parent)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def frames_in(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def wait_for_part(folder: Path) -> None:
    """Until a recording has begun to grow."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if any(path.stat().st_size > 0 for path in folder.glob("*.partial.*")):
            return
        time.sleep(0.05)
    raise AssertionError("nothing is being recorded")


def run_here(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_a_bounded_run_reports_what_it_did(
    toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, target = tmp_path / "report.json", tmp_path / "out.mkv"
    more = ("-o", str(target), "--max-frames", "6", "--report", str(report), "--drop", "none", "--scale", "2")
    assert run_here(*words(toy_bundle, *more)) == 0
    found = json.loads(report.read_text())
    assert (found["camera"], found["settings"]["drop"], found["settings"]["max_outage"]) == (TEST, "none", 30.0)
    run = found["run"]
    assert (run["delivered"], run["dropped"], run["source_size"], run["result_size"]) == (6, 0, [32, 24], [64, 48])
    assert run["latency_ms"]["p50"] <= run["latency_ms"]["p95"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["max"]
    assert all(run["stages_ms"][name]["p50"] >= 0 for name in ("capture", "pre", "engine", "post", "sink"))
    assert frames_in(target) == 6
    assert (found["sinks"], found["recorded"]) == ([str(target)], 6)
    assert (found["ended_by"], found["error"]) == ("max_frames", None)
    told = rf"{TEST}: 6 of \d+ frames at [\d.]+ fps, 0 dropped, latency p50.*; to {target}\n"
    assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", {"reuse": True, "reuse_threshold": 0, "refresh": 60, "temporal": "fixed", "seed": 0, "strength": 1}),
        ("--no-reuse", {"reuse": False}),
        (
            "--reuse-threshold 3 --reuse-refresh 7 --temporal blend --seed 5 --strength 0.5",
            {"reuse": True, "reuse_threshold": 3, "refresh": 7, "temporal": "blend", "seed": 5, "strength": 0.5},
        ),
    ],
)
def test_the_report_has_the_settings_of_the_run(
    toy_bundle: Path, tmp_path: Path, given: str, found: dict[str, object]
) -> None:
    report = tmp_path / "report.json"
    assert run_here(*words(toy_bundle, "-o", "null", "--max-frames", "2", "--report", str(report), *given.split())) == 0
    settings = json.loads(report.read_text())["settings"]
    assert {name: settings[name] for name in found} == found


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_signals_leave_a_playable_file_and_nothing_else(
    toy_bundle: Path, tmp_path: Path, kind: signal.Signals, code: int, suffix: str
) -> None:
    target = tmp_path / f"out{suffix}"
    with running(toy_bundle, "-o", str(target)) as process:
        wait_for_part(tmp_path)
        time.sleep(0.5)
        process.send_signal(kind)
        _, told = process.communicate(timeout=30)
        assert process.returncode == code
    assert "Traceback" not in told
    assert frames_in(target) > 3
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_what_timeout_sends_twice_ends_a_run_like_one_signal(toy_bundle: Path, tmp_path: Path) -> None:
    target, report = tmp_path / "out.mkv", tmp_path / "report.json"
    with running(toy_bundle, "-o", str(target), "--report", str(report)) as process:
        wait_for_part(tmp_path)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        _, told = process.communicate(timeout=30)
        # A second signal that comes after the end of the run has its usual meaning; a shell shows 143 for both.
        assert process.returncode in (143, -signal.SIGTERM)
    assert "Traceback" not in told
    assert f" to {target}\n" in told
    found = json.loads(report.read_text())
    assert (found["ended_by"], found["error"], found["recorded"]) == ("SIGTERM", None, frames_in(target))
    assert {path.name for path in tmp_path.iterdir()} == {"out.mkv", "report.json"}


def test_a_disk_that_fills_up_ends_the_run_with_what_was_written(toy_bundle: Path, tmp_path: Path) -> None:
    target, report = tmp_path / "out.mkv", tmp_path / "report.json"
    limits = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150000, 150000)); "
    command = [sys.executable, "-c", f"{limits}from rsd_edge.cli import main; main()"]
    more = words(toy_bundle, "-o", str(target), "--crf", "0", "--max-frames", "4000", "--report", str(report))
    ended = subprocess.run(
        [*command, *more], capture_output=True, text=True, timeout=60, check=False, cwd=toy_bundle.parent
    )
    assert ended.returncode == 2
    assert ended.stderr.count("error:") == 1
    assert "Traceback" not in ended.stderr
    assert re.search(r"the first \d\.\d s are kept there", ended.stderr)
    assert frames_in(target) > 3
    assert {path.name for path in tmp_path.iterdir()} == {"out.mkv", "report.json"}
    found = json.loads(report.read_text())
    assert (found["ended_by"], found["recorded"]) == ("error", frames_in(target))
    assert ended.stderr == f"error: {found['error']}\n"


def test_a_report_that_cannot_be_written_hides_no_failure(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, _document: object) -> None:
        raise OutputError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(live_options, "write_report", full)
    report = tmp_path / "r.json"
    assert run_here(*words(toy_bundle, "-o", "null", "--report", str(report), "--max-pixels", "9")) == 2
    told = rf"error: {TEST} has frames of .* --max-pixels 768; and cannot write {report}: the disk is full\n"
    assert re.fullmatch(told, capsys.readouterr().err)
    with live_options._told_after(KeyboardInterrupt()):
        full(report, {})
    assert capsys.readouterr().err == f"error: cannot write {report}: the disk is full\n"
    assert run_here(*words(toy_bundle, "-o", "null", "--report", str(report), "--max-frames", "2")) == 2
    told = rf"{TEST}: 2 of .* to null\nerror: cannot write {report}: the disk is full\n"
    assert re.fullmatch(told, capsys.readouterr().err)


def test_the_end_of_a_run_is_told_by_what_brought_it() -> None:
    statistics, limits = Statistics(lambda: 0.0), RunLimits(max_frames=1)
    assert _end(CameraError("gone"), [], limits, statistics) == {"ended_by": "error", "error": "gone"}
    assert _end(KeyboardInterrupt(), [signal.SIGINT], limits, statistics) == {"ended_by": "SIGINT", "error": None}
    assert _end(None, [], limits, statistics) == {"ended_by": "window", "error": None}
    statistics.delivered(0.0, (8, 8))
    assert _end(None, [], limits, statistics) == {"ended_by": "max_frames", "error": None}


def test_a_page_that_is_left_alone_ends_with_the_run(toy_bundle: Path) -> None:
    pytest.importorskip("aiohttp")
    with running(toy_bundle, "--serve", "0") as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        with urllib.request.urlopen(f"{url}stream.mjpg", timeout=20) as watching:
            assert watching.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130


@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed (Debian: apt-get install xvfb)")
@pytest.mark.parametrize("how", ["closed", "q"])
def test_a_window_that_is_closed_ends_the_run_well(toy_bundle: Path, tmp_path: Path, how: str) -> None:
    if shutil.which("xdotool") is None:
        pytest.skip("xdotool is not installed (Debian: apt-get install xdotool)")
    screen = subprocess.Popen(["Xvfb", ":77", "-screen", "0", "640x480x24"], stderr=subprocess.DEVNULL)
    environment = {**os.environ, "DISPLAY": ":77"}
    try:
        time.sleep(1)
        target = tmp_path / "out.mkv"
        command = [sys.executable, "-c", "from rsd_edge.cli import main; main()"]
        more = words(toy_bundle, "--window", "-o", str(target))
        process = subprocess.Popen(
            [*command, *more], stderr=subprocess.PIPE, text=True, env=environment, cwd=toy_bundle.parent
        )
        wait_for_part(tmp_path)
        find = ["xdotool", "search", "--sync", "--name", "^rsd-edge$"]
        found = subprocess.run(find, env=environment, timeout=20, check=True, capture_output=True, text=True)
        window = found.stdout.split()[-1]
        if how == "closed":
            ask_to_close(":77", int(window))
        else:
            subprocess.run(["xdotool", "key", "--window", window, "q"], env=environment, timeout=20, check=True)
        _, told = process.communicate(timeout=20)
        assert (process.returncode, "Traceback" in told) == (0, False), told
        assert frames_in(target) > 0
    finally:
        screen.terminate()
        screen.wait()


def test_mistakes_are_told_in_one_line(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--camera", "nonsense", "-o", "null"): "camera 'nonsense' is none of",
        ("--camera", "test"): "nowhere to put the frames",
        ("--camera", "test", "-o", str(tmp_path / "x.avi")): "whose frames have times",
        ("--camera", "/dev/video99", "-o", "null"): "/dev/video99 does not exist",
        ("--camera", "test", "--capture", "big", "-o", "null"): "give WxH, WxH@FPS or @FPS",
        ("--camera", "rtsp://me:pw@h/x", "--capture", "9x9", "-o", "null"): "capture 9x9 is not for rtsp://me:***@h/x",
        ("--camera", "test", "--batch", "4", "-o", "null"): "--batch 4: cameras give toy tiles one by one; leave it",
        ("--camera", "test", "--frame-path", "triton", "-o", "null"): "--frame-path triton: frames of cameras are cut",
        ("--camera", "test", "--frame-path", "reference", "-o", "null"): "and merged by numpy; leave it out",
        ("--camera", "test", "--reuse-refresh", "9", "-o", "null"): "--reuse-refresh needs --reuse-threshold, such as",
        ("--camera", "test", "photo.png", "-o", "null"): "exclude each other",
        ("--camera", "test", "--max-outage", "0", "-o", "null"): "max-outage is 0",
        ("--camera", TEST, "--max-pixels", "767", "-o", "null"): f"{TEST} has frames of 32x24 = 768 pixels, more than",
        ("--camera", "test", "--serve", "x", "-o", "null"): "serve is 'x'",
        ("--camera", "test", "--size", "9x9", "--strip", "-o", "null"): "--size, --strip: not for cameras",
        ("--camera", "test", "--crf", "20", "-o", "null"): "--crf: for videos; end -o in .mkv or .mp4",
        ("--camera", "test", "--serve-token", "abcdefgh", "-o", "null"): "--serve-token needs --serve",
        ("photo.png",): "Missing option '-o'",
        ("photo.png", "-o", "out.png", "--serve", "8080"): "--serve: for cameras; add --camera, or leave it out",
        ("-o", "out.png"): "Missing argument 'INPUT...'",
    }
    for arguments, message in cases.items():
        assert run_here("run", "--engine", str(toy_bundle), *arguments) == 2
        told = capsys.readouterr().err
        assert message in told
        assert len(told.strip().splitlines()) == 1


def test_sizes_and_rates_are_asked_for_together_or_alone() -> None:
    assert _parse_capture("1280x720@30") == ((1280, 720), 30.0)
    assert _parse_capture("1280X720") == ((1280, 720), None)
    assert _parse_capture("@12.5") == (None, 12.5)
    for text in ("", "@", "1280", "0x9", "9x0", "@0", "@-1", "@inf", "9x9@nan", "9x9@x", "@0.0004", "@1e300"):
        with pytest.raises(InputError, match=r"capture is '.*'; (give WxH|sizes are 1 or more, rates 0\.001 to 1000)"):
            _parse_capture(text)


@pytest.mark.parametrize("rate", ["0.001", "1000"])
def test_a_recording_takes_any_rate_that_may_be_asked_for(toy_bundle: Path, tmp_path: Path, rate: str) -> None:
    target = tmp_path / "out.mp4"
    assert run_here(*words(toy_bundle, "--capture", f"@{rate}", "-o", str(target), "--max-frames", "2")) == 0
    assert frames_in(target) == 2


def test_batches_are_for_engines_that_are_made_for_them() -> None:
    _check_batch(4, WholeTileEngine(TileSpec(size=56, batch=4, fixed=True)))
    _check_batch(1, WholeTileEngine(TileSpec(size=56)))
    with pytest.raises(InputError, match="--batch 4: cameras give double tiles one by one; leave it out"):
        _check_batch(4, WholeTileEngine(TileSpec(size=56, batch=4)))


def test_a_checkpoint_is_opened_and_reported_with_the_frame_path_of_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    class Recorder:
        @staticmethod
        def load(_model: str, **options: str | None) -> None:
            asked.append(options["frame_path"])
            raise ModelError("enough")

    monkeypatch.setattr(run_command, "SuperResolver", Recorder)
    on_torch = ("--engine", "x.safetensors", "--device", "cuda")
    for engine in (on_torch, (*on_torch, "--backend", "torch"), ("--engine", "edge-n")):
        assert run_here("run", "--camera", "test", "-o", "null", *engine) == 2
    assert asked == ["numpy", "numpy", None]  # None would be Triton's for an edge model on a GPU


def test_help_names_the_sources() -> None:
    told = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "--camera SOURCE" in told
    assert "--serve [HOST:]PORT" in told


def test_the_table_shows_rates_and_times() -> None:
    clock = [0.0]
    statistics = Statistics(lambda: clock[0])
    statistics.open = True
    for _ in range(5):
        clock[0] += 0.05
        statistics.captured(clock[0], 0.01, (160, 90))
        statistics.stage("engine", 0.03)
        statistics.delivered(clock[0] - 0.04, (640, 360))
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(table(statistics.now()))
    told = captured.get()
    assert "live  160x90 to 640x360  in 20.0 fps, out 20.0 fps" in told
    assert re.search(r"latency\s+. 40\.0 . 40\.0 . 40\.0", told)
    assert re.search(r"engine\s+. 30\.0", told)
