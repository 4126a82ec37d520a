"""Times of copied packets: shifted as the pictures are, mended where a clock goes back or jumps, cut to what is wanted.

A clock begins anew where recordings were put one behind the other. No container takes times that go back.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

from av.packet import Packet
from av.stream import Stream

from rsd_edge.video.formats import Container
from rsd_edge.video.packet_times import LONGEST_GAP
from rsd_edge.video.source import Clip, is_picture


class TrackTimes:
    """Gives the packets of all copied tracks their times in one result."""

    def __init__(self, clip: Clip, container: Container, end: Fraction | None, *, drop_priming: bool) -> None:
        """end: seconds in the result behind which nothing is copied; None for all.

        drop_priming: leave out the samples before zero that the container cannot place.
        """
        self._clip, self._container, self._end, self._drop_priming = clip, container, end, drop_priming
        self._last: dict[int, tuple[int, Fraction]] = {}
        """Time of each track's latest packet, by its index: in ticks of the result, and in seconds before rounding."""
        self._latest = Fraction(0)
        """Seconds that sound has come to on any track."""
        self.moved: Counter[int] = Counter()
        """Packets put behind the one before them, by their track's index."""
        self.left_out: Counter[int] = Counter()
        """Subtitles whose time goes back, likewise: nothing tells where they belong."""

    def __call__(self, packet: Packet[Stream], tick: Fraction) -> Fraction | None:
        """Set the packet's times; its place in the result in seconds, or None if it has none. tick: of the result."""
        if packet.size and is_picture(packet.stream):
            packet.pts = packet.dts = 0
            return Fraction(0)
        time = packet.pts if packet.dts is None else packet.dts
        if packet.size == 0 or time is None:
            return None
        shift = round(self._clip.shift / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        if not self._in_order(packet, tick):
            return None
        return self._wanted(packet)

    def _in_order(self, packet: Packet[Stream], tick: Fraction) -> bool:
        """Mend the time as those of pictures are; False if the packet has to be left out.

        Judged by the result's ticks, to which the container rounds: a coarser one makes equal times of different ones.
        """
        index, subtitle = packet.stream.index, packet.stream.type == "subtitle"
        seconds = _time(packet) * packet.time_base
        time = _rounded(seconds / tick)
        if index in self._last:
            last, before = self._last[index]
            least = last if subtitle or self._container.equal_times else last + 1
            if subtitle and time < least:
                self.left_out[index] += 1
                return False
            if not subtitle and not least <= time <= (self._latest + LONGEST_GAP) / tick:
                self.moved[index] += 1
                step = (packet.duration or 0) * packet.time_base or tick
                seconds = before + step  # not of rounded times, whose errors would add up
                time = max(least, _rounded(seconds / tick))
                packet.pts = packet.dts = time
                packet.duration, packet.time_base = max(1, _rounded(step / tick)), tick
        self._last[index] = time, seconds
        if not subtitle:  # which may have nothing to show for hours
            self._latest = max(self._latest, seconds)
        return True

    def _wanted(self, packet: Packet[Stream]) -> Fraction | None:
        """Cut at both ends; the packet's place, or None outside of what is wanted."""
        time, part, subtitle = _time(packet), self._clip.begin is not None, packet.stream.type == "subtitle"
        seconds = time * packet.time_base
        if self._end is not None and seconds >= self._end:
            return None
        left = time + (packet.duration or 0)
        if subtitle and self._end is not None:
            left = min(left, math.ceil(self._end / packet.time_base))  # rounded down, nothing might be left of it
            packet.duration = left - time
        if part and time < 0 < left and subtitle:
            packet.pts, packet.dts, packet.duration = 0, 0, left
            return Fraction(0)
        if time < 0 and (part or (left <= 0 and self._drop_priming)):
            return None  # before the part that is wanted, or priming samples that this container cannot place
        return seconds


def _time(packet: Packet[Stream]) -> int:
    time = packet.pts if packet.dts is None else packet.dts
    assert time is not None
    return time


def _rounded(ticks: Fraction) -> int:
    """As FFmpeg does it: halves away from zero."""
    return math.floor(ticks + Fraction(1, 2)) if ticks >= 0 else math.ceil(ticks - Fraction(1, 2))
