"""What files say in records that are not looked into: only noticed, so that a note can tell of them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rsd_edge.stream.tiff import Directory

_APP1, _APP13, _COMMENT = 0xE1, 0xED, 0xFE
_MORE_XMP = b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_PHOTOSHOP_IPTC, _TIFF_IPTC, _PNG_IPTC = 0x0404, 33723, b"Raw profile type iptc\0"
_IPTC_FIELD = re.compile(rb"\x1c\x02[^\0]")
"""About the picture; number 0 is only the version of the format."""
_OF_PROGRAMS = re.compile(
    rb"[\s\0]*$|CREATOR: |Created with (?:The )?GIMP|File written by |Lavc|LEAD Technologies|Intel\(R\) JPEG"
)
"""Comments that programs leave where nobody said anything."""
_SAID_ELSEWHERE = re.compile(
    rb"Software\0|Comment\0+Created with (?:The )?GIMP|date:|exif:|icc:|XML:com\.adobe\.xmp\0"
    rb"|Raw profile type (?!iptc\0)"
)
"""Texts that tell of a program, of a file's dates or, once more, what other chunks hold."""


def jpeg_unread(segments: Iterable[tuple[int, bytes]]) -> tuple[str, ...]:
    """The names of it in (marker, content)."""
    segments = list(segments)
    photoshop = (content for marker, content in segments if marker == _APP13 and content.startswith(_PHOTOSHOP))
    found = {
        "Extended XMP": any(marker == _APP1 and content.startswith(_MORE_XMP) for marker, content in segments),
        "IPTC": _holds_iptc(b"".join(content[len(_PHOTOSHOP) :] for content in photoshop)),
        "comment": any(marker == _COMMENT and not _OF_PROGRAMS.match(content) for marker, content in segments),
    }
    return tuple(name for name, present in found.items() if present)


def png_unread(texts: Iterable[bytes]) -> tuple[str, ...]:
    """The names of it in the contents, or their beginnings, of chunks of text."""
    told = [text for text in texts if not _SAID_ELSEWHERE.match(text)]
    return tuple(dict.fromkeys("IPTC" if text.startswith(_PNG_IPTC) else "text" for text in told))


def tiff_unread(main: Directory) -> tuple[str, ...]:
    """The names of it in a file's main directory."""
    return ("IPTC",) if _TIFF_IPTC in main else ()


def _holds_iptc(resources: bytes) -> bool:
    """Of Photoshop: each a signature, a number, a name with its length, the size of the content and this."""
    position = 0
    while position + 12 <= len(resources):
        number = int.from_bytes(resources[position + 4 : position + 6], "big")
        start = position + 6 + (resources[position + 6] // 2 + 1) * 2 + 4
        end = start + int.from_bytes(resources[start - 4 : start], "big")
        if number == _PHOTOSHOP_IPTC and _IPTC_FIELD.search(resources, start, end):
            return True
        position = end + end % 2
    return False
