"""What the header of an image file says, read without decoding, and whether the file is all there.

A decoder allocates what the header asks for and, in some OpenCV versions, fills the missing part of a truncated file
with gray. Both are decided here first, from the bytes alone, and whether the colours would be right.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from rsd_edge.stream.density import jpeg_dpi, png_dpi, png_gamma, tiff_dpi
from rsd_edge.stream.metadata import Metadata, exif_of_tiff
from rsd_edge.stream.png_chunks import PNG_SIGNATURE, PNG_XMP, png_chunks, png_metadata
from rsd_edge.stream.tiff import Directory, TiffError, open_tiff
from rsd_edge.stream.unread import jpeg_unread, png_unread, tiff_unread

SNIFF_BYTES = 32
"""How many leading bytes `sniff_format` needs."""

_NETPBM = {1: "PBM", 2: "PGM", 3: "PPM", 4: "PBM", 5: "PGM", 6: "PPM", 7: "PAM"}
_SIGNATURES = (
    ("PNG", PNG_SIGNATURE),
    ("JPEG", b"\xff\xd8\xff"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("GIF", b"GIF8"),
    ("BigTIFF", b"II+\x00"),
    ("BigTIFF", b"MM\x00+"),
    ("JPEG 2000", b"\x00\x00\x00\x0cjP  "),
    ("JPEG XL", b"\x00\x00\x00\x0cJXL "),
    ("JPEG XL", b"\xff\x0a"),
    ("PSD", b"8BPS"),
    ("OpenEXR", b"\x76\x2f\x31\x01"),
    ("PDF", b"%PDF"),
    *((name, f"P{digit}{space}".encode()) for digit, name in _NETPBM.items() for space in " \t\r\n"),
    ("video", b"\x1a\x45\xdf\xa3"),  # Matroska and WebM
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
}
"""Still images among the many things that begin with `ftyp`; the rest are MP4, MOV and their kin."""

_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_HUFFMAN_DCT = (0xC0, 0xC1, 0xC2)
_JPEG_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_SCAN = 0xDA
_JPEG_YCCK = b"\2"
_JPEG_EXIF, _JPEG_XMP, _JPEG_ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_JPEG_MARKERS = (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)
"""Of JFIF, EXIF and XMP, profiles, Photoshop, Adobe and comments."""

_PNG_COLOURS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of each colour type."""
_PNG_GRAY, _PNG_PALETTE = 0, 3
_PNG_TEXT_START = 128
"""Bytes, of which a keyword has up to 79."""

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS = 256, 257, 258
_TIFF_COMPRESSION = 259
_TIFF_STRIPS, _TIFF_STRIP_SIZES, _TIFF_TILES, _TIFF_TILE_SIZES = 273, 279, 324, 325
_TIFF_COLOUR, _TIFF_SAMPLES, _TIFF_EXTRA, _TIFF_SAMPLE_FORMAT = 262, 277, 338, 339
_TIFF_SUBSAMPLING = 530
_TIFF_XMP, _TIFF_ICC = 700, 34675
_TIFF_CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 6: 3}
"""Channels of gray (0 is white, 0 is black), RGB, palette and YCbCr. What a pixel has beyond is alpha."""
_TIFF_OTHER_COLOURS = {4: "mask", 5: "CMYK", 8: "Lab", 9: "Lab", 10: "Lab", 32803: "raw camera", 34892: "raw camera"}
_TIFF_WHITE_IS_ZERO, _TIFF_PALETTE, _TIFF_YCBCR = 0, 3, 6
_TIFF_PREMULTIPLIED = 1
_TIFF_DEPTHS = (1, 2, 4, 8, 16)
_TIFF_RATIOS = {1: 1, 5: 2800, 8: 1040, 32773: 64, 32946: 1040}
"""Bytes that one byte can stand for, uncompressed and in LZW, deflate, PackBits and deflate by its old number."""
_TIFF_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}

_TO_RGB = "convert it to RGB (sRGB), for example with ImageMagick: magick IN -colorspace sRGB OUT.png"
_TO_STILL = "extract its frames first, or save one of them as a still image"


class HeaderError(Exception):
    """The bytes are no readable image; the text says why, without naming the file."""

    def __init__(self, reason: str, cure: str = "") -> None:
        """cure: what to do about it, if that is not to convert or to copy the file."""
        super().__init__(reason)
        self.cure = cure


@dataclass(frozen=True)
class ImageHeader:
    """What a file holds, as stored (before its EXIF orientation is applied)."""

    format: str
    width: int
    height: int
    bits: int = 8
    """Per channel, of the colours in a palette too."""
    alpha: bool = False
    more_pages: bool = False
    """A multi-page file, of which only the first picture is used."""
    gray: bool = False
    """One channel of colour. A BMP is known to be gray only once its palette is decoded."""
    palette: bool = False
    premultiplied: bool = False
    """OpenCV decodes it to colours that are multiplied by alpha."""
    clear_gray: int | None = None
    """The value, as decoded, of gray pixels that are transparent, where OpenCV leaves that out."""
    negative: bool = False
    """OpenCV decodes it to a negative."""
    dpi: int = 0
    """Beside EXIF; 0 if the file does not say."""
    gamma: float = 0
    """Of a PNG that says so instead of bringing a profile, where it is not that of sRGB."""
    metadata: Metadata = field(default_factory=Metadata)


def sniff_format(start: bytes) -> str:
    """The format named by the first SNIFF_BYTES of a file, or '' if unknown. Not every name has a parser."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "video")
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "video"
    return next((name for name, signature in _SIGNATURES if start.startswith(signature)), "")


def parse_header(data: bytes) -> ImageHeader:
    """Header of a whole file.

    Raises HeaderError if it is truncated, damaged, animated, not PNG, JPEG, WebP, BMP or TIFF, or of a colour model or
    number format that would not be read right.
    """
    name = sniff_format(data[:SNIFF_BYTES])
    if name == "GIF":
        raise HeaderError("is a GIF file", f"if it moves, {_TO_STILL}; if it does not, convert it to PNG")
    if name not in _PARSERS:
        raise HeaderError(f"is a {name} file" if name else "is not an image")
    try:
        header = _PARSERS[name](data)
    except (struct.error, IndexError, TiffError):
        raise HeaderError("is truncated") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError(f"is damaged: its header says {header.width}x{header.height} pixels")
    return header


def _png(data: bytes) -> ImageHeader:
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    alpha, clear_gray, wrapped, texts = colour in (4, 6), None, {}, []
    for kind, start, end in png_chunks(data):
        # Lower case marks a chunk that decoders may ignore, and its checksum with it.
        critical = kind[:1].isupper()
        if critical and zlib.crc32(memoryview(data)[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise HeaderError("is damaged: a checksum does not match")
        alpha |= kind == b"tRNS"
        if kind == b"tRNS" and colour == _PNG_GRAY:
            clear_gray = _png_clear_gray(data[start:end], bits)
        if kind == b"acTL" and struct.unpack_from(">I", data, start)[0] > 1:
            raise HeaderError("is an animated PNG file", _TO_STILL)
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            texts.append(data[start : min(end, start + _PNG_TEXT_START)])
        if kind in (b"eXIf", b"iCCP", b"pHYs", b"gAMA", b"sRGB") or (
            kind == b"iTXt" and data.startswith(PNG_XMP + b"\0", start)
        ):
            wrapped[kind] = data[start:end]
        if kind == b"IEND":
            if colour not in _PNG_COLOURS:
                raise HeaderError(f"is damaged: it has colour type {colour}")
            palette = colour == _PNG_PALETTE
            return ImageHeader(
                "PNG",
                width,
                height,
                8 if palette else bits,
                alpha,
                gray=colour in (_PNG_GRAY, 4),
                palette=palette,
                clear_gray=clear_gray,
                dpi=png_dpi(wrapped),
                gamma=png_gamma(wrapped),
                metadata=replace(png_metadata(wrapped), unread=png_unread(texts)),
            )
    raise HeaderError("is truncated")


def _png_clear_gray(content: bytes, bits: int) -> int | None:
    """What is stored with `bits` bits a pixel is decoded to 8 bits or more; the bits above them mean nothing."""
    most = 2**bits - 1
    if len(content) != 2 or not most:
        return None
    (value,) = struct.unpack_from(">H", content)
    return int(value & most) * (255 // most if bits < 8 else 1)


def _jpeg(data: bytes) -> ImageHeader:
    frame: tuple[int, ...] = ()
    wrapped: list[tuple[int, bytes]] = []
    scanned = False
    position = 2
    while position < len(data):
        match = _JPEG_NEXT_MARKER.search(data, position)
        if match is None:
            break
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:
            if not frame:
                raise HeaderError("is damaged: it holds no picture")
            return _jpeg_header(frame, wrapped, len(data))
        if marker in (0x01, 0xD8):
            continue
        (size,) = struct.unpack_from(">H", data, position)
        scanned |= marker == _JPEG_SCAN
        if marker in _JPEG_FRAME_MARKERS and not frame:
            frame = (marker, *struct.unpack_from(">BHHB", data, position + 2))
        elif marker in _JPEG_MARKERS and not scanned:
            wrapped.append((marker, data[position + 2 : position + size]))
        position += size
    raise HeaderError("is truncated")


def _jpeg_header(frame: tuple[int, ...], wrapped: list[tuple[int, bytes]], size: int) -> ImageHeader:
    marker, bits, height, width, channels = frame
    if channels == 4:
        transforms = [content[11:12] for marker, content in wrapped if marker == 0xEE and content[:5] == b"Adobe"]
        raise HeaderError(f"is a {'YCCK' if _JPEG_YCCK in transforms else 'CMYK'} JPEG file", _TO_RGB)
    if channels not in (1, 3):
        raise HeaderError(f"is damaged: it has {channels} channels")
    # A Huffman code has one bit or more, and each block has one; what is missing would be decoded to gray.
    if marker in _JPEG_HUFFMAN_DCT and -(-width // 8) * -(-height // 8) > 8 * size:
        raise HeaderError("is truncated")
    if bits != 8:
        raise HeaderError(f"is a {bits}-bit JPEG file")
    gray, metadata = channels == 1, _jpeg_metadata(wrapped)
    return ImageHeader("JPEG", width, height, gray=gray, dpi=jpeg_dpi(wrapped), metadata=metadata)


def _jpeg_metadata(wrapped: list[tuple[int, bytes]]) -> Metadata:
    def first(start: bytes) -> bytes:
        found = (content for marker, content in wrapped if marker == 0xE1 and content.startswith(start))
        return next(found, b"").removeprefix(start)

    parts = [content[len(_JPEG_ICC) :] for marker, content in wrapped if marker == 0xE2 and content[:12] == _JPEG_ICC]
    numbered = sorted((part[0], part[2:]) for part in parts if len(part) > 2)
    complete = bool(numbered) and [number for number, _ in numbered] == list(range(1, parts[0][1] + 1))
    icc = b"".join(content for _, content in numbered) if complete else b""
    damaged = () if complete or not parts else ("ICC profile",)
    return Metadata(first(_JPEG_EXIF), first(_JPEG_XMP), icc, damaged, jpeg_unread(wrapped))


def _webp(data: bytes) -> ImageHeader:
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise HeaderError("is truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        flags = data[20]
        if flags & 0x02:
            raise HeaderError("is an animated WebP file", _TO_STILL)
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        found = dict(_webp_chunks(data, size + 8))
        exif = found.get(b"EXIF", b"").removeprefix(_JPEG_EXIF)
        metadata = Metadata(exif, found.get(b"XMP ", b""), found.get(b"ICCP", b""))
        return ImageHeader("WebP", width, height, alpha=bool(flags & 0x10), metadata=metadata)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        alpha = bool(packed >> 28 & 1)
        return ImageHeader("WebP", 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), alpha=alpha)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHeader("WebP", width & 0x3FFF, height & 0x3FFF)
    raise HeaderError("is damaged: its first chunk holds no picture")


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the chunks that hold metadata."""
    position = 12
    while position + 8 <= end:
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind in (b"EXIF", b"XMP ", b"ICCP"):
            yield kind, data[position + 8 : min(position + 8 + size, end)]
        position += 8 + size + size % 2


def _bmp(data: bytes) -> ImageHeader:
    offset, header_size = struct.unpack_from("<II", data, 10)
    alpha_mask = 0
    if header_size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        if header_size >= 56 and bits == 32 and compression == 3:
            (alpha_mask,) = struct.unpack_from("<I", data, 66)
    rows = abs(height)  # negative marks rows stored from top to bottom
    uncompressed = compression in (0, 3, 6)
    if uncompressed and offset + (width * bits + 31) // 32 * 4 * rows > len(data):
        raise HeaderError("is truncated")
    return ImageHeader("BMP", width, rows, alpha=alpha_mask != 0, palette=bits <= 8)


def _tiff(data: bytes) -> ImageHeader:
    main = open_tiff(data)
    width, height, samples = (
        main.number(tag, default) for tag, default in ((_TIFF_WIDTH, 0), (_TIFF_HEIGHT, 0), (_TIFF_SAMPLES, 1))
    )
    colour = main.number(_TIFF_COLOUR, 2 if samples >= 3 else 1)
    bits = max(main.numbers(_TIFF_BITS, (1,)))
    _check_tiff(main, colour, samples, bits)
    values = width * height * samples
    if colour == _TIFF_YCBCR:  # a block of pixels shares its two values of colour
        across, down = (*main.numbers(_TIFF_SUBSAMPLING), 2, 2)[:2]
        values -= 2 * (width * height - (width // max(across, 1)) * (height // max(down, 1)))
    _check_tiff_data(main, values * bits // 8)
    alpha = samples > _TIFF_CHANNELS[colour]
    return ImageHeader(
        "TIFF",
        width,
        height,
        8 if colour == _TIFF_PALETTE else bits,
        alpha,
        more_pages=main.next != 0,
        gray=colour in (0, 1),
        palette=colour == _TIFF_PALETTE,
        # Below 16 bits libtiff multiplies, whatever the file holds.
        premultiplied=alpha and (bits <= 8 or _TIFF_PREMULTIPLIED in main.numbers(_TIFF_EXTRA)),
        negative=colour == _TIFF_WHITE_IS_ZERO and bits > 8,  # libtiff turns others round itself
        dpi=tiff_dpi(main),
        metadata=_tiff_metadata(main),
    )


def _check_tiff(main: Directory, colour: int, samples: int, bits: int) -> None:
    """Raises HeaderError for what OpenCV does not read, or reads as something else."""
    named = [_TIFF_FORMATS[number] for number in main.numbers(_TIFF_SAMPLE_FORMAT) if number in _TIFF_FORMATS]
    if named:
        raise HeaderError(f"is a {named[0]} TIFF file", "convert it to unsigned 8 or 16 bits")
    if colour not in _TIFF_CHANNELS:
        name = _TIFF_OTHER_COLOURS.get(colour, f"colour model {colour}")
        raise HeaderError(f"is a {name} TIFF file", _TO_RGB)
    if bits not in _TIFF_DEPTHS:
        raise HeaderError(f"is a TIFF file of {bits} bits per channel", "convert it to unsigned 8 or 16 bits")
    extra = samples - _TIFF_CHANNELS[colour]
    if not 0 <= extra <= 1:
        raise HeaderError(f"is a TIFF file of {samples} channels", "convert it to gray, RGB or RGBA")
    if extra and _TIFF_CHANNELS[colour] == 1:
        raise HeaderError("is a gray or palette TIFF file with transparency", "convert it to PNG, or to an RGBA TIFF")


def _check_tiff_data(main: Directory, pixel_bytes: int) -> None:
    """Raises HeaderError if strips or tiles lie beyond the file, or cannot hold all pixels."""
    stored = 0
    for starts, sizes in ((_TIFF_STRIPS, _TIFF_STRIP_SIZES), (_TIFF_TILES, _TIFF_TILE_SIZES)):
        lengths = main.numbers(sizes)
        ends = (start + size for start, size in zip(main.numbers(starts), lengths, strict=False))
        if max(ends, default=0) > len(main.data):
            raise HeaderError("is truncated")
        stored += sum(lengths)
    # What is missing would be decoded to black. Some programs leave the sizes of a single strip out.
    ratio = _TIFF_RATIOS.get(main.number(_TIFF_COMPRESSION, 1))
    if ratio and stored and pixel_bytes > ratio * stored:
        raise HeaderError("is truncated")


def _tiff_metadata(main: Directory) -> Metadata:
    found, unreadable = {}, []
    readers: dict[str, Callable[[], bytes]] = {
        "EXIF": lambda: exif_of_tiff(main),
        "XMP": lambda: main.raw(_TIFF_XMP),
        "ICC profile": lambda: main.raw(_TIFF_ICC),
    }
    for name, read in readers.items():
        try:
            found[name] = read()
        except TiffError:
            unreadable.append(name)
    exif, xmp, icc = (found.get(name, b"") for name in readers)
    return Metadata(exif, xmp, icc, tuple(unreadable), tiff_unread(main))


_PARSERS: dict[str, Callable[[bytes], ImageHeader]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WebP": _webp,
    "BMP": _bmp,
    "TIFF": _tiff,
}
