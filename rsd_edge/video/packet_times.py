"""What the packets of a file tell before any of them is decoded: times, places to begin at, a digest."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise

from av.packet import Packet
from av.stream import Stream

LONGEST_GAP = 3600
"""Seconds: a longer pause between two frames is a damaged time, which no container could hold."""


class PacketTimes:
    """Collects from all packets of a file, in its order, those of the pictures being added besides."""

    def __init__(self, file_size: int) -> None:
        self.known: list[int] = []
        """Of the packets that become frames, in ticks."""
        self.count = 0
        """Packets that become frames."""
        self.stored = 0
        """Frames, those included that are not to be shown."""
        self.end = Fraction(0)
        """Seconds at which the last packet of any stream ends."""
        self.broken = False
        self._keys: list[tuple[int, int]] = []
        """(packet, time) of the keyframes that are at the same time however many frames before them are decoded."""
        self._latest: int | None = None
        self._regular = True
        self._digest = hashlib.sha256(str(file_size).encode())

    def see(self, packet: Packet[Stream]) -> None:
        """A packet of any stream."""
        time = _time(packet)
        if packet.size and time is not None:
            self.end = max(self.end, (time + (packet.duration or 0)) * packet.time_base)
        if packet.size:
            self._digest.update(f"{packet.stream_index} {packet.pts} {packet.dts} {packet.size} ".encode())
            self._digest.update(packet)

    def add(self, packet: Packet[Stream]) -> None:
        """A packet of the pictures."""
        if packet.size == 0:
            return
        time = _time(packet)
        self._note_key(packet, time)
        self.stored += 1
        if packet.is_discard:
            return
        self.count += 1
        if time is not None:
            self.known.append(time)

    @property
    def digest(self) -> str:
        """Of the bytes and times of all packets, which the file's date and a few samples of it would not tell."""
        return self._digest.hexdigest()

    def entries(self, begin: int | None) -> tuple[int, ...]:
        """Packets at which decoding may begin to get the frames from `begin` on, the latest first, the first last."""
        before = [] if begin is None else [place for place, time in self._keys if place > 0 and time <= begin]
        return (*reversed(before[-2:]), 0)

    def on_grid(self, step: Fraction) -> bool:
        """All frames are whole steps apart, to one tick; some may be missing."""
        first = min(self.known, default=0)
        places = ((time - first) / step for time in self.known)
        slack = max(Fraction(1), step / 100)
        return all(abs(place - round(place)) * step <= slack for place in places)

    def spacing(self) -> tuple[int, int]:
        """The shortest and the longest step between frames, in ticks."""
        ordered = sorted(self.known)
        steps = [after - before for before, after in pairwise(ordered)]
        return (min(steps), max(steps)) if steps else (0, 0)

    def _note_key(self, packet: Packet[Stream], time: int | None) -> None:
        """Up to the first time that is missing, goes back or jumps: what follows depends on how that is mended."""
        if time is None:
            self._regular = False
            return
        if packet.is_keyframe and self._regular:
            longest = LONGEST_GAP / packet.time_base
            self._regular = self._latest is None or self._latest < time <= self._latest + longest
            if self._regular:
                self._keys.append((self.stored, time))
        self._latest = time if self._latest is None else max(self._latest, time)


def _time(packet: Packet[Stream]) -> int | None:
    return packet.dts if packet.pts is None else packet.pts
