"""The capture thread: frames from a source into a mailbox, and back to the source when it goes away."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Protocol

from rsd_edge.errors import CameraError, InputError
from rsd_edge.live.channel import Channel
from rsd_edge.live.clock import Clock, sleep
from rsd_edge.live.frames import LiveFrame, Picture
from rsd_edge.live.statistics import Statistics
from rsd_edge.stream.images import MAX_PIXELS
from rsd_edge.video.settings import check_pixels

log = logging.getLogger(__name__)


class Capture(Protocol):
    """An open source. Serves the thread that opened it."""

    damaged: int
    """Frames so far that came and could not be decoded."""

    def read(self) -> Picture | None:
        """The next frame, BGR, of an array of its own; None if the source is gone."""

    def interrupt(self) -> None:
        """From another thread: let a `read` that waits return soon, where the device can do that."""

    def close(self) -> None:
        """Release the device; calling it again does nothing."""


class Source(Protocol):
    """Something that can be opened again and again."""

    name: str
    """As the user knows it, without passwords."""

    def open(self) -> Capture:
        """Raises CameraError, with the cure, if it cannot be opened now."""


@dataclass(frozen=True)
class Reconnection:
    """How a lost source is asked again, in seconds."""

    first: float = 0.25
    """After the loss; then twice as long each time."""
    longest: float = 5.0
    max_outage: float = 30.0
    """Without a frame, after which the run ends with an error; may be infinite."""

    def __post_init__(self) -> None:
        if math.isnan(self.max_outage) or self.max_outage <= 0:
            raise InputError(f"max-outage is {self.max_outage:g}; give seconds, more than 0, or inf")


class Receiver:
    """Reads one source until it is stopped."""

    def __init__(
        self,
        source: Source,
        mailbox: Channel[LiveFrame],
        clock: Clock,
        statistics: Statistics,
        rules: Reconnection | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._source, self._mailbox, self._clock, self._statistics = source, mailbox, clock, statistics
        self._rules, self._max_pixels = rules or Reconnection(), max_pixels
        self._stopped = False
        self._last = 0.0
        self._epoch = self._index = 0
        self._capture: Capture | None = None
        self._delay = self._rules.first
        self._reason = ""
        """Why there are no frames; empty while there are."""

    def stop(self) -> None:
        """End after the read that is going on."""
        with self._clock.changing():
            self._stopped = True
            capture = self._capture
        if capture is not None:
            capture.interrupt()

    def run(self) -> None:
        """Work until `stop`, or until nobody takes frames. Raises CameraError for a source that does not open at first,
        or that stays away for longer than `max_outage`, VideoReadError for a frame of more than `max_pixels`."""
        try:
            self._capture = self._source.open()
            self._last = self._clock.now()
            while self._capture is not None:
                self._statistics.open = True
                self._read(self._capture)
                self._statistics.open = False
                self._capture.close()
                self._reason = "it opens and sends nothing" if self._reason else "it was lost"
                self._capture = self._reopen()
        finally:
            self._statistics.open = False
            if self._capture is not None:
                self._capture.close()
            self._mailbox.finish()

    def _read(self, capture: Capture) -> None:
        damaged_before = self._statistics.damaged
        while not self._stopped:
            began = self._clock.now()
            pixels = capture.read()
            if pixels is None:
                return
            width, height = pixels.shape[1], pixels.shape[0]
            check_pixels(self._source.name, width, height, self._max_pixels)
            now = self._last = self._clock.now()
            if self._reason:
                self._statistics.reconnects += 1
            self._delay, self._reason = self._rules.first, ""
            self._tell_change((width, height))
            self._statistics.captured(now, now - began, (width, height))
            if not self._mailbox.put(LiveFrame(self._index, now, pixels, self._epoch)):
                self._stopped = True
            self._statistics.dropped = self._mailbox.dropped
            self._statistics.damaged = damaged_before + capture.damaged
            self._index += 1

    def _tell_change(self, size: tuple[int, int]) -> None:
        """Warn of the first change of size; those after it are counted alone, or a camera that changes with each frame
        would fill a log."""
        before = self._statistics.size
        if before not in (None, size) and not self._statistics.size_changes:
            log.warning(
                "%s changes from %dx%d to %dx%d; a film keeps the size that it began with, images each have their own",
                self._source.name, *before, *size,
            )  # fmt: skip

    def _reopen(self) -> Capture | None:
        """The source once it opens again; None after `stop`. Raises CameraError at the end of the longest outage."""
        while True:
            if self._stopped:  # who stops while the source is being asked has not lost it
                return None
            outage = self._clock.now() - self._last
            if outage >= self._rules.max_outage:
                raise CameraError(
                    f"{self._source.name}: no signal for {outage:.0f} s ({self._reason}); "
                    "check the camera and the network, or give a longer --max-outage"
                )
            delay, self._delay = self._delay, min(2 * self._delay, self._rules.longest)
            if not sleep(self._clock, min(delay, self._rules.max_outage - outage), lambda: self._stopped):
                return None
            try:
                capture = self._source.open()
            except CameraError as error:
                self._reason = str(error)
                continue
            self._epoch += 1
            return capture
