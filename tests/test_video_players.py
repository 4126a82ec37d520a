"""What players rely on in a finished film, and inputs that must neither stop it nor be lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import Recipe, cubic, make, upscale

from rsd_edge import VideoUpscaler
from rsd_edge.errors import OutputError
from rsd_edge.video.encoder import fitted


def test_the_last_frame_is_shown_as_long_as_the_others(tmp_path: Path) -> None:
    upscale(make(tmp_path / "a.mp4", Recipe()), "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as film:
        packets = [packet for packet in film.demux(video=0) if packet.size]
        assert {packet.duration * packet.time_base for packet in packets} == {Fraction(1, 25)}


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_the_index_comes_before_the_pictures(tmp_path: Path, container: str) -> None:
    upscale(make(tmp_path / "a.mp4", Recipe()), f"b.{container}")
    data = (tmp_path / f"b.{container}").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_hevc_has_the_tag_that_all_players_take(tmp_path: Path) -> None:
    upscale(make(tmp_path / "a.mp4", Recipe()), "b.mp4", codec="hevc")
    with av.open(str(tmp_path / "b.mp4")) as film:
        assert film.streams.video[0].codec_context.codec_tag == "hvc1"


def test_odd_sides_are_made_even_by_doubling_the_edge() -> None:
    image = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
    assert np.array_equal(fitted(image, 6, 4), np.pad(image, ((0, 1), (0, 1), (0, 0)), "edge"))


def test_a_tag_that_is_no_unicode_does_not_stop_a_film(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", Recipe(tags={"title": "Caf@ noir"}))
    source.write_bytes(source.read_bytes().replace(b"Caf@ noir", b"Caf\xe9 noir"))
    _, after = upscale(source, "b.mkv")
    assert after.metadata["title"] == "Caf\ufffd noir"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_to_the_input_is_not_written_over(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    source = make(tmp_path / "a.mp4", Recipe())
    before, target = source.read_bytes(), tmp_path / "b.mp4"
    link(source, target)
    with pytest.raises(OutputError, match=r"b\.mp4 is the input; choose another -o"):
        VideoUpscaler(cubic)(source, target)
    assert target.read_bytes() == before
