"""Videos, images, windows and virtual cameras as sinks, and what is left of them when something breaks."""

from __future__ import annotations

import builtins
import errno
import re
import sys
import types
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import pytest

from rsd_edge.errors import MissingDependencyError, OutputError
from rsd_edge.live.clock import SystemClock
from rsd_edge.live.frames import LiveFrame, LiveResult
from rsd_edge.live.letterbox import letterboxed
from rsd_edge.live.recording import VideoSink, cut_torn_fragment
from rsd_edge.live.sinks import ImageSequenceSink, VirtualCameraSink, WindowSink
from rsd_edge.stream.images import read_image
from rsd_edge.video.settings import VideoSettings

TIMES = (0.0, 0.04, 0.12, 0.16, 0.5, 0.54)


def result(index: int, at: float, size: tuple[int, int] = (64, 48)) -> LiveResult:
    width, height = size
    pixels = np.full((height, width, 3), (40 * index) % 256, np.uint8)
    pixels[:, : width // 2] = (200, 60, 30)
    small = np.zeros((height // 4, width // 4, 3), np.uint8)
    return LiveResult(LiveFrame(index, 100.0 + at, small), pixels)


def frames_of(path: Path) -> list[tuple[float, av.VideoFrame]]:
    with av.open(str(path)) as container:
        return [(float(frame.time or 0), frame) for frame in container.decode(video=0)]


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", None), (".mp4", None), (".webm", None), (".mov", "prores_ks")])
def test_a_recording_has_the_times_of_capture_and_the_right_colours(
    tmp_path: Path, suffix: str, codec: str | None
) -> None:
    sink = VideoSink(tmp_path / f"out{suffix}", VideoSettings(codec=codec), "test", 25.0)
    for index, at in enumerate(TIMES):
        sink.write(result(index, at))
    sink.close()
    found = frames_of(tmp_path / f"out{suffix}")
    # Matroska and WebM count milliseconds.
    assert [at for at, _ in found] == pytest.approx(TIMES, abs=0.001)
    pixel = found[0][1].to_ndarray(format="bgr24")[24, 8]
    assert np.abs(pixel.astype(int) - (200, 60, 30)).max() <= 4  # lossy, 4:2:0 and swscale's matrix
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


def test_odd_sizes_and_sizes_that_change_fit_the_film(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "out.mkv", VideoSettings(), "test")
    for index, size in enumerate([(63, 47), (63, 47), (80, 100)]):
        sink.write(result(index, index / 10, size))
    sink.close()
    assert [(frame.width, frame.height) for _, frame in frames_of(tmp_path / "out.mkv")] == [(64, 48)] * 3


@pytest.mark.parametrize(
    ("size", "inside"),
    [
        ((64, 64), (slice(0, 48), slice(8, 56))),
        ((96, 36), (slice(12, 36), slice(0, 64))),
        ((16, 12), (slice(0, 48), slice(0, 64))),
        ((900, 1), (slice(23, 24), slice(0, 64))),
    ],
)
def test_a_picture_of_another_shape_keeps_its_proportions(
    size: tuple[int, int], inside: tuple[slice, slice], tmp_path: Path
) -> None:
    bars = np.zeros((48, 64, 3), np.uint8)
    bars[inside] = 200
    white = np.full((size[1], size[0], 3), 200, np.uint8)
    assert np.array_equal(letterboxed(white, 64, 48), bars)
    sink = VideoSink(tmp_path / "out.mkv", VideoSettings(), "test")
    for index, pixels in enumerate((np.zeros_like(bars), white)):
        sink.write(LiveResult(result(index, index).frame, pixels))
    sink.close()
    shown = frames_of(tmp_path / "out.mkv")[1][1].to_ndarray(format="bgr24")
    assert np.abs(shown.astype(int) - bars).mean() < 8  # lossy around the edges


def test_nothing_is_left_of_a_recording_without_frames(tmp_path: Path) -> None:
    VideoSink(tmp_path / "out.mkv", VideoSettings(), "test").close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_recording_whose_encoder_does_not_exist(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "out.mkv", VideoSettings(codec="nonsense"), "test")
    with pytest.raises(OutputError, match="nonsense is not in this FFmpeg"):
        sink.write(result(0, 0.0))
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_fragment_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sink = VideoSink(path, VideoSettings(), "test", 2.0)
    for index in range(12):  # a fragment for every second
        sink.write(result(index, index / 2))
    sink.close()
    whole = path.read_bytes()
    starts = [at - 4 for at in range(len(whole)) if whole.startswith(b"moof", at)]
    cut_torn_fragment(path)
    assert path.read_bytes() == whole
    path.write_bytes(whole[: starts[-1] + 150])
    cut_torn_fragment(path)
    assert path.stat().st_size == starts[-1]
    assert 8 <= len(frames_of(path)) < 12


def test_what_cannot_be_recorded_is_told_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"whose frames have times; use one of \.mp4"):
        VideoSink(tmp_path / "out.avi", VideoSettings(), "test")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file is a file; choose a folder"):
        VideoSink(tmp_path / "file" / "out.mkv", VideoSettings(), "test")
    (tmp_path / "folder.mkv").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*folder\.mkv: it is a folder; give a name for the file"):
        VideoSink(tmp_path / "folder.mkv", VideoSettings(), "test")


class FullDisk:
    """A file on a disk that has room for so many bytes more."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        if len(data) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._room -= len(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def leave_room(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """For recordings on their way."""
    opened = builtins.open

    def limited(path: Any, *arguments: Any, **options: Any) -> Any:
        file = opened(path, *arguments, **options)
        return FullDisk(file, room) if ".partial" in str(path) and arguments == ("x+b",) else file

    monkeypatch.setattr(builtins, "open", limited)


def record_noise(sink: VideoSink, rate: float) -> None:
    """Until something breaks."""
    rng = np.random.default_rng(0)
    for index in range(400):
        noise = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        sink.write(LiveResult(result(index, index / rate).frame, noise))


@pytest.mark.parametrize("rate", [25.0, 2.0])  # 25 is what the encoder is told to expect of both
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_full_disk_leaves_what_can_be_played(
    tmp_path: Path, suffix: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room(monkeypatch, 150000)
    sink = VideoSink(tmp_path / f"out{suffix}", VideoSettings(), "test", 25.0)
    with pytest.raises(OutputError, match=r"the disk is full.*s are kept there") as raised:
        record_noise(sink, rate)
    assert raised.value.errno == errno.ENOSPC
    sink.close()  # does nothing more
    monkeypatch.undo()
    found = frames_of(tmp_path / f"out{suffix}")
    # Noise of this size takes about 3000 bytes a frame, so 50 have room; an MP4 loses up to its last second.
    # Where one piece has no room, a smaller one after it may.
    assert 25 <= len(found) < 100
    told = re.search(r"the first (\d+\.\d) s are kept", str(raised.value))
    assert told is not None
    assert float(told.group(1)) == pytest.approx((len(found) - 1) / rate, abs=0.06)  # told to a tenth
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_recording_of_nothing_takes_no_place(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_room(monkeypatch, 2500)
    with pytest.raises(OutputError, match=r"the disk is full.*none is kept"):
        record_noise(VideoSink(tmp_path / f"out{suffix}", VideoSettings(), "test", 25.0), 25.0)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def record(sink: VideoSink, frames: int) -> None:
    for index in range(frames):
        sink.write(result(index, index / 25))
    sink.close()


def test_a_recording_replaces_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out.mkv"
    record(VideoSink(path, VideoSettings(), "test"), 3)
    first = path.read_bytes()
    (tmp_path / "out-2.partial.mkv").write_bytes(b"what a power cut left")
    sink = VideoSink(path, VideoSettings(), "test")
    assert sink.name == str(tmp_path / "out-3.mkv")
    assert f"{path} is taken, and no recording replaces another; this one is {sink.name}" in caplog.text
    record(sink, 5)
    assert path.read_bytes() == first
    assert len(frames_of(tmp_path / "out-3.mkv")) == 5
    assert len(list(tmp_path.iterdir())) == 3


def test_two_recordings_at_once_are_two_files(tmp_path: Path) -> None:
    both = [VideoSink(tmp_path / "out.mkv", VideoSettings(), "test") for _ in range(2)]
    for sink in both:
        sink.write(result(0, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-2.partial.mkv", "out.partial.mkv"]
    for sink in both:
        sink.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-2.mkv", "out.mkv"]


def test_a_signal_while_a_recording_ends_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.mkv"
    sink = VideoSink(path, VideoSettings(), "test", 25.0)
    for index in range(60):
        sink.write(result(index, index / 25))

    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rsd_edge.live.recording.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    assert len(frames_of(path)) == 60
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", ["whole", "full", "signal"])
def test_a_recording_that_cannot_get_its_name_is_kept_and_told(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where another program has taken it, or the folder became read-only, which root would not notice."""
    path = tmp_path / "out.mkv"
    sink = VideoSink(path, VideoSettings(), "test", 25.0)
    if end == "full":
        leave_room(monkeypatch, 150000)
    sink.write(result(0, 0.0))
    path.mkdir()
    if end == "full":
        with pytest.raises(OutputError, match=r"the disk is full.*; the first \d\.\d s are kept in") as raised:
            record_noise(sink, 25.0)
        told = str(raised.value)
    else:
        for index in range(30):
            sink.write(result(index, index / 25))
        if end == "signal":
            monkeypatch.setattr("rsd_edge.live.recording.os.fsync", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                sink.close()
            told = caplog.text.strip()
        else:
            with pytest.raises(OutputError, match=r"cannot write .*out\.mkv: File exists; .* is kept in") as raised:
                sink.close()
            assert raised.value.errno == errno.EEXIST
            told = str(raised.value)
    sink.close()  # does nothing more
    monkeypatch.undo()
    kept = Path(told.rpartition(" in ")[2])
    assert kept.parent == tmp_path
    assert len(frames_of(kept)) >= 25


def _interrupted(_descriptor: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm"])
def test_frames_of_one_moment_follow_each_other(tmp_path: Path, suffix: str) -> None:
    """As a camera gives them whose clock is coarse, or was set back, or a stream that catches up."""
    sink = VideoSink(tmp_path / f"out{suffix}", VideoSettings(), "test", 25.0)
    for index, at in enumerate((0.0, 0.5, 0.5, 0.25, 1.0, 1.0002)):
        sink.write(result(index, at))
    sink.close()
    found = [at for at, _ in frames_of(tmp_path / f"out{suffix}")]
    assert found == pytest.approx([0.0, 0.5, 0.501, 0.502, 1.0, 1.001], abs=1e-6)


def test_keyframes_come_by_the_time_of_capture(tmp_path: Path) -> None:
    path = tmp_path / "out.mkv"
    sink = VideoSink(path, VideoSettings(), "test", 25.0)
    for index in range(12):
        sink.write(result(index, index * 0.75))
    sink.close()
    with av.open(str(path)) as container:
        keys = [frame.time for frame in container.decode(video=0) if frame.key_frame]
    assert keys == pytest.approx([0.0, 2.25, 4.5, 6.75], abs=1e-3)  # frames that come two seconds later or more


def test_names_of_images_need_a_number(tmp_path: Path) -> None:
    for name in ("x_%s.png", "%d_%d.png", "100%%.png", "%q.png", "x_%c.png", "x_%%_%d.png", "%999d.png", "50%"):
        with pytest.raises(OutputError, match="needs one number such as %06d; make the folder first if it is to be"):
            ImageSequenceSink(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("50%", "50%/000000.png"),
        ("50%/f", "50%/f/000000.png"),
        ("50%/x_%03d.png", "50%/x_000.png"),
        ("a%20b/x_%06d.png", "a%20b/x_000000.png"),
        ("x%%y/o", "x%%y/o/000000.png"),
        ("%06d.png", "%06d.png/000000.png"),
    ],
)
def test_folders_keep_their_names_whatever_is_in_them(tmp_path: Path, given: str, made: str) -> None:
    for name in ("50%", "%06d.png"):
        (tmp_path / name).mkdir()
    sink = ImageSequenceSink(tmp_path / given)
    sink.write(result(0, 0.0))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / made]


def test_a_camera_that_does_not_open_leaves_no_folder(tmp_path: Path) -> None:
    ImageSequenceSink(tmp_path / "frames").close()
    VideoSink(tmp_path / "films" / "out.mkv", VideoSettings(), "test").close()
    assert list(tmp_path.iterdir()) == []


def test_images_are_numbered(tmp_path: Path) -> None:
    sink = ImageSequenceSink(tmp_path / "frames")
    named = ImageSequenceSink(tmp_path / "named" / "x_%03d.jpg")
    for index in range(3):
        for each in (sink, named):
            each.write(result(index * 7, index))
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"{k:06d}.png" for k in range(3)]
    assert sorted(path.name for path in (tmp_path / "named").iterdir()) == [f"x_{k:03d}.jpg" for k in range(3)]
    assert np.array_equal(read_image(tmp_path / "frames" / "000001.png"), result(7, 1).pixels)
    with pytest.raises(OutputError, match="needs one number"):
        ImageSequenceSink(tmp_path / "%d_%d.png")
    with pytest.raises(OutputError, match=r"000000\.png exists, and two sequences would be mixed"):
        ImageSequenceSink(tmp_path / "frames")
    with pytest.raises(OutputError, match=r"no room for all frames; .* such as one_%06d\.png"):
        ImageSequenceSink(tmp_path / "one.png")
    with pytest.raises(OutputError, match=r"notes\.txt: it ends in '\.txt' and is no folder; end it in \.mkv"):
        ImageSequenceSink(tmp_path / "notes.txt")
    (tmp_path / "run.2").mkdir()
    ImageSequenceSink(tmp_path / "run.2")
    with pytest.raises(OutputError, match=r"\.txt"):
        ImageSequenceSink(tmp_path / "x_%d.txt")


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(OutputError, match=r"--window needs a display.*--serve 8080"):
        WindowSink(SystemClock())


def test_a_virtual_camera_needs_its_package_and_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'rsd-edge\[virtualcam\]'"):
        VirtualCameraSink(None, 25.0)
    monkeypatch.setitem(sys.modules, "pyvirtualcam", types.ModuleType("pyvirtualcam"))
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(OutputError, match="modprobe v4l2loopback"):
        VirtualCameraSink("/dev/video9", 25.0)


def test_a_virtual_camera_gets_every_picture_in_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    class Camera:
        def __init__(self, width: int, height: int, fps: float, fmt: str, device: str | None) -> None:
            assert (fps, fmt, device) == (25.0, "BGR", "/dev/video9")
            self.width, self.height = width, height

        def send(self, picture: Any) -> None:
            sent.append(picture)

        def close(self) -> None:
            sent.append(None)

    module: Any = types.ModuleType("pyvirtualcam")
    module.Camera, module.PixelFormat = Camera, types.SimpleNamespace(BGR="BGR")
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    monkeypatch.setattr(Path, "exists", lambda self: True)
    sink = VirtualCameraSink("/dev/video9", 25.0)
    sink.write(result(0, 0))
    sink.write(result(1, 1, (32, 32)))
    sink.close()
    first, second, end = sent
    assert (first.shape, second.shape, end) == ((48, 64, 3), (48, 64, 3), None)
    assert not second[:, :8].any()  # a bar
    assert second[:, 8:].any()
