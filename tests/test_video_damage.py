"""Damaged, mislabelled and meaningless files: one clear error or what could be saved, and nothing half-written."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from video_clips import Recipe, cubic, make, read

from rsd_edge import VideoSettings, VideoUpscaler
from rsd_edge.errors import VideoReadError

SECONDS_EACH = 20
"""The limit for each file, on a busy machine. A sound clip of this size takes 0.05 s."""
MOST_PIXELS = 100_000

TRY_ALL = """
import json, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from rsd_edge import RsdEdgeError, VideoSettings, VideoUpscaler
from video_clips import cubic

settings = VideoSettings(scale=2, segment_frames=5, max_pixels=int(sys.argv[5]))
for path in sorted(Path(sys.argv[2]).iterdir()):
    target = Path(sys.argv[3]) / f"{path.name}.mkv"
    signal.alarm(int(sys.argv[4]))
    print(json.dumps({"begin": path.name}), flush=True)
    outcome = {"file": path.name, "frames": 0, "notes": [], "error": ""}
    try:
        result = VideoUpscaler(cubic, settings)(path, target)
        outcome |= {"frames": result.frames, "notes": result.notes}
    except RsdEdgeError as error:
        outcome["error"] = str(error)
    signal.alarm(0)
    print(json.dumps(outcome), flush=True)
"""


def mutations(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of damaged files, the same every time."""
    rng = random.Random(20)
    vp9 = {"crf": "10", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    sources = {
        "mp4": make(folder / "a.mp4", Recipe(audio=("aac",), options={"crf": "10", "bf": "2"}, b_frames=2)),
        "mkv": make(folder / "a.mkv", Recipe(audio=("aac",))),
        "webm": make(folder / "a.webm", Recipe("libvpx-vp9", vp9)),
        "avi": make(folder / "a.avi", Recipe("mpeg4", {}, time_base=Fraction(1, 25), times=range(8))),
        "ts": make(folder / "a.ts", Recipe()),
    }
    for suffix, path in sources.items():
        data = path.read_bytes()
        for number in range(26):
            flipped = bytearray(data)
            # From one flip to a torrent; a third of them in the headers, which decide most.
            for _ in range(1 << number % 8):
                flipped[rng.randrange(len(data) if number < 16 else min(len(data), 2000))] ^= 1 << rng.randrange(8)
            yield f"flip{number}.{suffix}", bytes(flipped)
        for percent in (1, 5, 20, 35, 50, 65, 80, 90, 95, 99):
            yield f"cut{percent}.{suffix}", data[: len(data) * percent // 100]
        yield f"hole.{suffix}", data[: len(data) // 3] + bytes(2000) + data[len(data) // 3 + 2000 :]
        yield f"wrong-{suffix}.{'mkv' if suffix != 'mkv' else 'mp4'}", data
    yield from bombs(folder, sources)
    yield "noise.mp4", rng.randbytes(5000)
    yield "zeros.mkv", bytes(5000)
    yield "text.avi", b"these are no pictures\n" * 50
    yield "one-byte.webm", b"\x1a"
    yield "playlist.ts", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\na.ts\n#EXT-X-ENDLIST\n"
    yield "concat.mp4", b"ffconcat version 1.0\nfile a.mp4\n"


def bombs(folder: Path, sources: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Frames of far more pixels than the file has bytes, as claims and in truth."""
    avi, mp4 = sources["avi"].read_bytes(), sources["mp4"].read_bytes()
    size, sides = struct.pack("<II", 64, 48), struct.pack(">HH", 64, 48)
    for side in (5000, 60_000, 2**31 - 1, 2**32 - 1):
        yield f"claim{side}.avi", avi.replace(size, struct.pack("<II", side, side))
        claimed = min(side, 65535)
        yield f"claim{side}.mp4", mp4.replace(sides, struct.pack(">HH", claimed, claimed))
    for suffix in ("mp4", "mkv", "ts"):
        _huge(folder / f"huge.{suffix}")
        yield f"huge.{suffix}", (folder / f"huge.{suffix}").read_bytes()
    yield "later-huge.ts", sources["ts"].read_bytes() + (folder / "huge.ts").read_bytes()


def _huge(path: Path) -> None:
    """A frame of one colour, in a few kilobytes."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = 4096
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast"}
        frame = av.VideoFrame(4096, 4096, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def test_mutated_files(tmp_path: Path) -> None:
    for name in ("made", "in", "out"):
        (tmp_path / name).mkdir()
    names = []
    for name, data in mutations(tmp_path / "made"):
        (tmp_path / "in" / name).write_bytes(data)
        names.append(name)
    assert len(names) == len(set(names)) > 200
    folders = (Path(__file__).parent, tmp_path / "in", tmp_path / "out")
    command = [sys.executable, "-c", TRY_ALL, *folders, str(SECONDS_EACH), str(MOST_PIXELS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == 0, (lines[-1:], run.stderr[-500:])  # the last line names the file that hung or crashed
    outcomes = {line["file"]: line for line in lines if "file" in line}
    assert sorted(outcomes) == sorted(names)
    for name, outcome in outcomes.items():
        assert bool(outcome["frames"]) != bool(outcome["error"]), outcome
        assert "\n" not in outcome["error"]
        assert (tmp_path / "out" / f"{name}.mkv").exists() is bool(outcome["frames"])
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {f"{name}.mkv" for name, outcome in outcomes.items() if outcome["frames"]}
    for name in left:
        assert len(read(tmp_path / "out" / name).times) == outcomes[name.removesuffix(".mkv")]["frames"]
    for name in ("noise.mp4", "zeros.mkv", "text.avi", "one-byte.webm", "playlist.ts", "concat.mp4", "cut50.mp4"):
        assert outcomes[name]["error"], name
    for name in ("wrong-mp4.mkv", "wrong-ts.mkv", "wrong-avi.mkv"):
        assert outcomes[name]["frames"] == 8
    for name in ("huge.mp4", "huge.mkv", "huge.ts"):
        assert "4096x4096 = 16777216 pixels, more than the limit" in outcomes[name]["error"]
    assert outcomes["later-huge.ts"]["frames"] == 8
    # Matroska, AVI and MPEG-TS are read from the front; what a cut leaves is saved, and said.
    for name in ("cut50.mkv", "cut95.avi", "cut50.webm"):
        assert 0 < outcomes[name]["frames"] < 8
        assert any("ends before its header says" in note for note in outcomes[name]["notes"]), outcomes[name]
    for name in ("wrong-mp4.mkv", "wrong-mkv.mp4", "flip0.webm"):
        assert not any("header" in note for note in outcomes[name]["notes"])


def test_a_truncated_file_is_saved_with_a_note(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", Recipe(times=range(0, 20 * 512, 512), options={"crf": "4", "bf": "0"}))
    fast = tmp_path / "fast.mp4"
    _faststart(source, fast)
    fast.write_bytes(fast.read_bytes()[: fast.stat().st_size * 6 // 10])
    result = VideoUpscaler(cubic, VideoSettings(segment_frames=5))(fast, tmp_path / "b.mp4")
    assert 2 < result.frames < 18
    assert "the file is damaged or ends before its header says; what can be read is enlarged" in result.notes
    content = read(tmp_path / "b.mp4")
    assert content.times == [Fraction(i, 25) for i in range(result.frames)]


def _faststart(source: Path, target: Path) -> None:
    """The same file with its index in front."""
    options = {"movflags": "+faststart"}
    with av.open(str(source)) as opened, av.open(str(target), "w", container_options=options) as output:
        stream = output.add_stream_from_template(opened.streams.video[0], opaque=True)
        for packet in opened.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)


def test_times_that_jump_beyond_reason(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe())
    with av.open(str(source)) as opened, av.open(str(tmp_path / "back.mkv"), "w", format="nut") as output:
        stream = output.add_stream_from_template(opened.streams.video[0], opaque=True)
        packets = [packet for packet in opened.demux(video=0) if packet.size]
        for index, packet in enumerate(packets):
            packet.pts = packet.dts = 40 * (index if index < 4 else index + 10**9)
            packet.stream = stream
            output.mux(packet)
    result = VideoUpscaler(cubic)(tmp_path / "back.mkv", tmp_path / "b.mkv")
    assert result.duration < 1
    assert any("no usable time" in note for note in result.notes)


@pytest.mark.parametrize(
    ("make_source", "error"),
    [
        (lambda path: None, "does not exist; check the spelling"),
        (lambda path: path.touch(), "is empty; copy or download it again"),
        (lambda path: path.mkdir(), "is no regular file; name a video file"),
        (lambda path: path.write_bytes(b"GIF89a" + bytes(100)), "is no video that can be read"),
        (lambda path: _sound_only(path), r"holds no video that can be decoded \(audio only\)"),
    ],
)
def test_what_is_no_video_is_one_line(tmp_path: Path, make_source: object, error: str) -> None:
    source = tmp_path / "a.mp4"
    make_source(source)
    for io in ("av", "opencv"):
        with pytest.raises(VideoReadError, match=error if io == "av" else r"a\.mp4 ") as raised:
            VideoUpscaler(cubic, VideoSettings(io=io))(source, tmp_path / "b.mp4")
        assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.mp4"}


def _sound_only(path: Path) -> None:
    film = make(path.with_suffix(".mkv"), Recipe(audio=("aac",)))
    with av.open(str(film)) as opened, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(opened.streams.audio[0])
        for packet in opened.demux(audio=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    film.unlink()
