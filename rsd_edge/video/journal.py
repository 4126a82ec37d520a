"""The folder beside a result in which an interrupted run is kept: encoded segments, and a journal that lists them.

The journal is lines of JSON. The first states what is made of what, with which engine; each further one a finished
segment; the last one that all are there. A line counts when it is whole, and is written after what it tells of.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsd_edge.errors import OutputError
from rsd_edge.stream.atomic import PARTS, atomic_file, make_folder, output_error

State = Mapping[str, NDArray[Any]]

_VERSION = 5
_MOST_BYTES = 255
"""Of a file's name."""
_KEPT_LETTERS = 40
"""Of a longer one; a letter has up to four bytes."""
_STATE = ".state"
_SMALL_STATE = 16_000_000
"""Bytes that may be written after each segment."""
_STATE_SECONDS = 60.0
"""Between two larger ones: a film of 1920x1080 has 250 MB, and flash memory wears."""


@dataclass(frozen=True)
class Segment:
    """Packets from one keyframe up to the next segment, in a file of nothing but their bytes."""

    file: str
    frames: int
    size: int
    packets: tuple[tuple[int, int, bool], ...]
    """(bytes, time, keyframe) in the order of decoding; times in ticks of the encoder."""
    end: int
    """Time at which its last frame ends."""


class WorkFolder:
    """An open work folder, locked against a second run; use it as a context."""

    def __init__(self, target: Path, header: Mapping[str, Any]) -> None:
        """Open or make the folder of a target.

        header: what must be the same for a run to go on, and `threads`, which need not be.
        Raises OutputError if another run is at it, or if it holds a run with another header.
        """
        self.path = target.with_name(_name(".", target.name, ".rsd-edge"))
        self.target = target
        self.segments: list[Segment] = []
        self.complete = False
        self.partial: Path | None = None
        """Where an earlier run put what it had when it was interrupted."""
        self.partial_frames = 0
        self._state_time = -math.inf
        self.threads: int = header["threads"]
        """Of the encoder: those that the run began with, on however many cores it goes on."""
        make_folder(self.path)
        try:
            # Held until close. Without a buffer, in which a line that did not fit would stay and fail again.
            self._journal = open(self.path / "journal.jsonl", "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise output_error(self.path, error) from error
        try:
            self._lock()
            self._load(json.loads(json.dumps(header)))
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        if not self.segments and self.partial is None:
            self.remove()  # there is nothing to go on from

    @property
    def frames(self) -> int:
        """Frames in finished segments."""
        return sum(segment.frames for segment in self.segments)

    def next_file(self) -> Path:
        """Where the next segment goes."""
        return self.path / f"{len(self.segments):06d}.packets"

    def save_state(self, state: State) -> None:
        """Keep what the frames behind the segment that is committed next depend on, by name; call it before.

        Large ones are kept once a minute, and a run goes on after the last that was. Raises OutputError.
        """
        size, now = sum(array.nbytes for array in state.values()), time.monotonic()
        if size > _SMALL_STATE and now - self._state_time < _STATE_SECONDS:
            return
        self._state_time = now
        segments = len(self.segments) + 1
        going_on = self.resumable
        for old in self._states():
            if old != going_on:  # which is what there is to go on from until the new one is there
                self._state_path(old).unlink()
        with atomic_file(self._state_path(segments)) as file:
            np.savez(file, **dict(state))  # type: ignore[arg-type]

    def rewind(self) -> State:
        """Give up segments behind which no state was kept, and return the state behind the others; nothing at the
        beginning. Raises OutputError if it cannot be read."""
        kept = self.resumable
        if kept < len(self.segments):
            self._append({"rewind": kept})
            del self.segments[kept:]
        if not kept:
            return {}
        path = self._state_path(kept)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as state:
                return {name: state[name] for name in state.files}
        except (OSError, ValueError, EOFError, AttributeError, KeyError, zipfile.BadZipFile):
            raise self._damaged(path.name) from None

    @property
    def resumable(self) -> int:
        """Segments behind which a state was kept."""
        return max((count for count in self._states() if count <= len(self.segments)), default=0)

    def _states(self) -> list[int]:
        return [int(path.stem) for path in self.path.glob(f"*{_STATE}") if path.stem.isdecimal()]

    def _state_path(self, segments: int) -> Path:
        return self.path / f"{segments:06d}{_STATE}"

    def _damaged(self, file: str) -> OutputError:
        return OutputError(f"{self.path} is damaged ({file}); delete that folder to begin again")

    def commit(self, segment: Segment) -> None:
        """Count a segment, whose file is on the disk, as finished. Raises OutputError."""
        self._append({"segment": asdict(segment)})
        self.segments.append(segment)

    def commit_all(self) -> None:
        """Note that no segment will follow. Raises OutputError."""
        self._append({"complete": True})
        self.complete = True

    def partial_path(self) -> Path:
        """A place for the playable beginning of an interrupted result, where no file of another kind is.

        Entered in the journal, so that the whole result can take its place. Raises OutputError.
        """
        if self.partial is None:
            path = free_partial(self.target)
            self._append({"partial": path.name, "frames": 0})
            self.partial = path
        return self.partial

    def note_partial(self, frames: int) -> None:
        """Enter how many frames the playable beginning has. Raises OutputError."""
        assert self.partial is not None
        self._append({"partial": self.partial.name, "frames": frames})
        self.partial_frames = frames

    def remove(self) -> None:
        """Delete the folder, and what an interruption left to play."""
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{self.target} is being written by another run; wait for it or choose another -o"
            ) from None
        except OSError:
            pass  # a file system without locks: two runs at once are the user's to avoid

    def _load(self, header: dict[str, Any]) -> None:
        self._journal.seek(0)
        lines, good = [], 0
        for line in self._journal.readall().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            lines.append(entry)
            good += len(line)
        self._journal.truncate(good)  # what a crash left of a last line
        if len(lines) == 1:  # a run that was killed before anything was done binds nobody
            self._journal.truncate(0)
            lines = []
        if not lines:
            self._append({"version": _VERSION, **header})
            return
        self._check(lines[0], header)
        self.threads = lines[0]["threads"]
        for entry in lines[1:]:
            if "complete" in entry:
                self.complete = True
            elif "partial" in entry:
                self.partial, self.partial_frames = self.target.with_name(entry["partial"]), entry["frames"]
            elif "rewind" in entry:
                del self.segments[entry["rewind"] :]
            else:
                self.segments.append(_segment(entry["segment"]))
        for segment in self.segments:
            path = self.path / segment.file
            if not path.is_file() or path.stat().st_size != segment.size:
                raise self._damaged(segment.file)
        for path in self.path.glob(PARTS):  # of a run that was killed
            path.unlink()

    def _check(self, found: dict[str, Any], header: dict[str, Any]) -> None:
        words = _differences(found, header)
        if words:
            raise OutputError(
                f"{self.path} holds an interrupted run that differs ({', '.join(words)}); repeat its command"
                f"{_engine_options(found, header)} to go on, or delete that folder to begin again"
            )

    def _append(self, entry: Mapping[str, Any]) -> None:
        position, rest = self._journal.seek(0, os.SEEK_END), f"{json.dumps(entry)}\n".encode()
        try:
            while rest:
                rest = rest[self._journal.write(rest) :]
            os.fsync(self._journal.fileno())
        except OSError as error:
            self._forget(position)
            raise output_error(self.target, error) from error

    def _forget(self, position: int) -> None:
        """Give up a line that did not fit; its rest, if any, is found and dropped by the next run."""
        try:
            self._journal.truncate(position)
        except OSError:
            return


def _segment(entry: dict[str, Any]) -> Segment:
    packets = tuple((size, time, key) for size, time, key in entry["packets"])
    return Segment(entry["file"], entry["frames"], entry["size"], packets, entry["end"])


def free_partial(target: Path) -> Path:
    """A name beside the target for the beginning of it, at which nothing is."""
    endings = (f".partial{number}{target.suffix}" for number in itertools.chain([""], itertools.count(2)))
    paths = (target.with_name(_name("", target.stem, ending)) for ending in endings)
    return next(path for path in paths if not path.exists())


def _name(before: str, name: str, after: str) -> str:
    """The three in one, where file systems take it; otherwise the name is cut, and told from others by a hash."""
    whole = f"{before}{name}{after}"
    if len(os.fsencode(whole)) <= _MOST_BYTES:
        return whole
    return f"{before}{name[:_KEPT_LETTERS]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{after}"


def _differences(found: dict[str, Any], header: dict[str, Any]) -> list[str]:
    """In words that whoever gave the command knows."""
    if found.get("version") != _VERSION:
        return ["it comes from another version of rsd-edge"]
    words = [] if found["input"] == header["input"] else ["another input"]
    for part in ("settings", "engine"):
        old, new = found[part], header[part]
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                was, now = (_value(name, values.get(name)) for values in (old, new))
                words.append(f"{name.replace('_', '-')} {was} then, {now} now" if was != now else f"another {name}")
    if not words and found["encoder"] != header["encoder"]:
        words = ["this FFmpeg would encode otherwise"]
    return words


def _engine_options(found: dict[str, Any], header: dict[str, Any]) -> str:
    """What gives the earlier engine again where none was asked for, and another one is the fastest by now."""
    old, new = found["engine"], header["engine"]
    choice = ("precision", "backend")
    if not {*choice} <= {*old} or all(old[name] == new.get(name) for name in choice):
        return ""
    return f" with {' '.join(f'--{name} {old[name]}' for name in choice)}"


def _value(name: str, value: Any) -> str:
    if name == "digest":
        return ""  # says nothing to anybody
    if isinstance(value, float):
        return f"{value:g}"
    return "default" if value is None else str(value)
