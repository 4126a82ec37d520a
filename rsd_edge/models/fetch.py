"""Published checkpoints from where their authors put them, into the user's cache folder.

A download goes on where it was cut. What a file contained the first time is remembered beside it: another content
under the same name is refused later.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rsd_edge.bundle import hash_file
from rsd_edge.errors import FetchError
from rsd_edge.machine import cache_folder
from rsd_edge.stream.atomic import atomic_file, make_folder, output_error, write_json
from rsd_edge.stream.locking import locked

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes there, bytes in all)."""

ATTEMPTS = 5
TIMEOUT_SECONDS = 30.0
_BLOCK = 1 << 20
_MAGIC = (b"PK\x03\x04", b"\x80")
"""How files of torch.save begin: a ZIP archive, or a pickle in old ones."""
_HEADERS = {"User-Agent": "rsd-edge", "Accept-Encoding": "identity"}
_PIN = ".sha256.json"
_RESSHIFT = "https://github.com/zsyOAOA/ResShift/releases/download/v2.0/"
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
"""Google Drive serves programs as it pleases: often it sends a page instead, which is refused here."""
_RSD_ID = "1EQbO1Bw2HtGmGad4uk3g2wTFjdH22B2X"
_SINSR = "https://github.com/wyf0912/SinSR/releases/download/v1.0/"


@dataclass(frozen=True)
class Published:
    """A file, where it can be had, and whose it is."""

    file: str
    family: str
    url: str
    page: str
    """For people, where the address above does not serve programs."""


def _release(file: str, family: str, base: str) -> Published:
    return Published(file, family, base + file, base.partition("/releases")[0])


PUBLISHED = {
    "resshift-v1": _release("resshift_realsrx4_s15_v1.pth", "resshift", _RESSHIFT),
    "resshift-v2": _release("resshift_realsrx4_s15_v2.pth", "resshift", _RESSHIFT),
    "resshift-v3": _release("resshift_realsrx4_s4_v3.pth", "resshift", _RESSHIFT),
    "autoencoder": _release("autoencoder_vq_f4.pth", "resshift", _RESSHIFT),
    "sinsr-v1": _release("SinSR_v1.pth", "sinsr", _SINSR),
    "sinsr-v2": _release("SinSR_v2.pth", "sinsr", _SINSR),
    "rsd": Published("ema_model_2800.pth", "rsd", _DRIVE.format(_RSD_ID), f"https://drive.google.com/file/d/{_RSD_ID}"),
}


class _CutError(Exception):
    """The connection ended early; what came so far is kept."""


def fetch(
    published: Published,
    folder: Path | None = None,
    *,
    from_file: Path | None = None,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
) -> Path:
    """The path of the file in `folder` (None for the cache), downloaded or copied there if it is not yet.

    Raises FetchError, with the cure, if it cannot be had, is no checkpoint, or is not what it was the first time.
    """
    folder = folder or _default_folder()
    target = folder / published.file
    make_folder(folder)
    if from_file is not None:
        _copy(from_file, target, published)
    elif target.is_file():
        _remember(target, published, _checked(target, target, published))
    else:
        _get(published, target, offline, progress)
    return target


def _default_folder() -> Path:
    try:
        return cache_folder() / "published"
    except RuntimeError as error:
        raise FetchError(f"there is no cache folder to keep the file in ({error}); set XDG_CACHE_HOME") from error


def _get(published: Published, target: Path, offline: bool, progress: Progress) -> None:
    by_hand = f"download {published.file} from {published.page} yourself and pass it with --from-file"
    if offline:
        raise FetchError(f"{target} is not there and --offline was given; leave that out, or {by_hand}")
    try:
        with locked(target.parent, target.name, "fetches"):
            if not target.is_file():
                _download(published, target, progress)
    except urllib.error.HTTPError as error:
        error.close()
        refusal = f"{error.code} {error.reason}"
        raise FetchError(f"{published.url} was refused ({refusal}); try later, or {by_hand}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise FetchError(f"{published.url} cannot be reached ({reason}); try later, or {by_hand}") from error


def _download(published: Published, target: Path, progress: Progress) -> None:
    partial = target.with_name(target.name + ".part")
    cut = _CutError()
    for _ in range(ATTEMPTS):
        try:
            _continue(published, partial, progress)
        except _CutError as error:
            cut = error
        else:
            _notes(partial).unlink(missing_ok=True)
            digest = _checked(partial, target, published)
            partial.replace(target)
            _remember(target, published, digest)
            return
    raise FetchError(
        f"{published.url} was cut {ATTEMPTS} times ({cut}); run the command again, it goes on where it stopped"
    )


def _continue(published: Published, partial: Path, progress: Progress) -> None:
    """Ask for what is missing, and add it."""
    known = _read_json(_notes(partial))
    have = partial.stat().st_size if partial.is_file() and known else 0
    if have and have == known.get("total"):  # whole, but for its name
        return
    request = urllib.request.Request(published.url, headers=_HEADERS)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known.get("etag"):  # another file under the same name is then sent whole
            request.add_header("If-Range", str(known["etag"]))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no such range: what is here belongs to another file
            error.close()
            partial.unlink()
            raise _CutError("the file has another size now") from error
        raise
    with response:
        _refuse_pages(response.headers.get("Content-Type", ""), published)
        start, total = _extent(response, have)
        blocks = _blocks(response)
        if not start:
            blocks = _checkpoint_blocks(blocks, response.url)
        if start != have or (start and total != known.get("total")):
            partial.unlink(missing_ok=True)
            if start:
                raise _CutError("the file has another size now")
        write_json(_notes(partial), {"etag": response.headers.get("ETag"), "total": total})
        _append(blocks, partial, start, total, progress)


def _extent(response: Any, have: int) -> tuple[int, int]:
    """First byte that comes, and bytes of the whole file; 0 if the server does not say."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(match[1]), int(match[2])) if match else (-1 if have else 0, 0)
    return 0, int(response.headers.get("Content-Length", 0))


def _append(blocks: Iterator[bytes], partial: Path, start: int, total: int, progress: Progress) -> None:
    done = start
    try:
        with partial.open("ab" if start else "wb") as file:
            for block in blocks:
                file.write(block)
                done += len(block)
                progress(done, total)
    except _CutError as error:
        raise _CutError(f"{done}{f' of {total}' if total else ''} bytes came, then: {error}") from error
    except OSError as error:
        raise output_error(partial, error) from error
    if total and done != total:
        if done > total:
            partial.unlink()
        raise _CutError(f"{done} of {total} bytes came")


def _blocks(response: Any) -> Iterator[bytes]:
    """What comes. Raises _CutError once all is handed on that came before the end, where that was too early."""
    try:
        while block := response.read(_BLOCK):
            yield block
    except http.client.IncompleteRead as error:
        if error.partial:
            yield error.partial
        raise _CutError("the connection ended") from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(str(error)) from error


def _checkpoint_blocks(blocks: Iterator[bytes], url: str) -> Iterator[bytes]:
    """The same, from the start of a file. The first is looked at at once: what is here may be better than a page."""
    first = next(blocks, b"")
    if first and not first.startswith(_MAGIC):
        raise FetchError(f"{url} sent no checkpoint (it begins with {first[:12]!r}); try later")
    return itertools.chain((first,), blocks)


def _refuse_pages(content_type: str, published: Published) -> None:
    if content_type.startswith("text/"):
        raise FetchError(
            f"{published.url} sent a page ({content_type.partition(';')[0]}) instead of the file; open "
            f"{published.page} in a browser, download {published.file} there and pass it with --from-file"
        )


def _copy(source: Path, target: Path, published: Published) -> None:
    """Put a copy in place once it is known to be what it was the first time; a wrong one replaces nothing."""
    try:
        with source.open("rb") as file, atomic_file(target) as copy:
            if not file.read(4).startswith(_MAGIC):
                raise FetchError(f"{source} is no checkpoint; download it again")
            file.seek(0)
            shutil.copyfileobj(file, copy, _BLOCK)
            copy.flush()
            digest = hash_file(Path(copy.name))
            if digest != _pinned(target, digest):
                raise FetchError(
                    f"{source} is not what {published.file} was the first time ({_differ(digest, target)}), so nothing "
                    f"was replaced; delete {_pin(target)} and give it again if you trust it"
                )
    except FileNotFoundError:
        raise FetchError(f"{source} does not exist; give another path") from None
    except (PermissionError, IsADirectoryError) as error:
        raise FetchError(f"{source} cannot be read ({error.strerror}); give another path") from error
    _remember(target, published, digest)


def _checked(found: Path, target: Path, published: Published) -> str:
    """SHA-256 of `found`, which is to serve as `target`; what is not as it was the first time is put aside."""
    digest = hash_file(found)
    if digest != _pinned(target, digest):
        aside = target.with_name(target.name + ".changed")
        found.replace(aside)
        raise FetchError(
            f"{published.file} is not what it was the first time ({_differ(digest, target)}); it lies in {aside}; "
            f"delete {_pin(target)} and pass that with --from-file if you trust it"
        )
    return digest


def _pinned(target: Path, otherwise: str) -> str:
    """SHA-256 that was remembered for the file."""
    return str(_read_json(_pin(target)).get("sha256", otherwise))


def _differ(digest: str, target: Path) -> str:
    return f"sha256 {digest[:12]}, then {_pinned(target, '')[:12]}"


def _remember(target: Path, published: Published, digest: str) -> None:
    if "sha256" not in _read_json(_pin(target)):
        write_json(_pin(target), {"sha256": digest, "bytes": target.stat().st_size, "url": published.url})


def _pin(target: Path) -> Path:
    return target.with_name(target.name + _PIN)


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
