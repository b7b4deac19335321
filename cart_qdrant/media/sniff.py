"""Recognises media by their first bytes; extensions only serve error messages."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from cart_qdrant.extras import require
from cart_qdrant.media.errors import media_errors

_HEAD = 4096  # bytes looked at


class Kind(StrEnum):
    """Kind of file, as far as its first bytes tell."""

    IMAGE = "image"
    ANIMATION = "animation"  # GIF, APNG, WebP or AVIF of several frames: treated as video
    CONTAINER = "container"  # video or audio: only its streams tell which


_EXTENSIONS = """
    3g2 3gp aac ac3 aif aifc aiff amr ape apng asf au avi avif bmp caf dts dv flac flv gif heic
    heif ivf j2k jp2 jfif jpe jpeg jpg m2ts m2v m4a m4b m4v mka mkv mov mp2 mp3 mp4 mpeg mpg mts
    mxf oga ogg ogv opus png pnm ppm psd qoi ra rm snd tga tif tiff tta vob wav webm webp wma wmv
    wv
"""
MEDIA_EXTENSIONS = frozenset("." + name for name in _EXTENSIONS.split())
"""A file with one of these that holds no known media is reported; other files are ignored."""

# (offset, bytes): the first that fits decides.
_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\xff\xd8\xff", Kind.IMAGE),  # JPEG
    (0, b"\x89PNG\r\n\x1a\n", Kind.IMAGE),
    (0, b"GIF87a", Kind.IMAGE),
    (0, b"GIF89a", Kind.IMAGE),
    (8, b"WEBP", Kind.IMAGE),
    (0, b"II*\x00", Kind.IMAGE),  # TIFF
    (0, b"MM\x00*", Kind.IMAGE),
    (0, b"II+\x00", Kind.IMAGE),  # BigTIFF
    (0, b"MM\x00+", Kind.IMAGE),
    (0, b"\x00\x00\x00\x0cjP  \r\n\x87\n", Kind.IMAGE),  # JPEG 2000
    (0, b"\xff\x4f\xff\x51", Kind.IMAGE),
    (0, b"8BPS\x00", Kind.IMAGE),  # Photoshop
    (0, b"qoif", Kind.IMAGE),
    (8, b"WAVE", Kind.CONTAINER),
    (8, b"AVI ", Kind.CONTAINER),
    (8, b"AIFF", Kind.CONTAINER),
    (8, b"AIFC", Kind.CONTAINER),
    (0, b"\x1a\x45\xdf\xa3", Kind.CONTAINER),  # Matroska, WebM
    (0, b"OggS", Kind.CONTAINER),
    (0, b"fLaC", Kind.CONTAINER),
    (0, b"ID3", Kind.CONTAINER),
    (0, b"FLV\x01", Kind.CONTAINER),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind.CONTAINER),  # ASF: wmv, wma
    (0, b"\x00\x00\x01\xba", Kind.CONTAINER),  # MPEG program stream
    (0, b"\x00\x00\x01\xb3", Kind.CONTAINER),  # MPEG video
    (0, b"#!AMR", Kind.CONTAINER),
    (0, b"caff\x00\x01", Kind.CONTAINER),
    (0, b".snd\x00\x00", Kind.CONTAINER),
    (0, b".RMF\x00\x00", Kind.CONTAINER),
    (0, b"wvpk", Kind.CONTAINER),
    (0, b"MAC \x96\x0f", Kind.CONTAINER),  # Monkey's Audio
    (0, b"TTA1", Kind.CONTAINER),
    (0, b"\x0b\x77", Kind.CONTAINER),  # AC-3
    (0, b"\x7f\xfe\x80\x01", Kind.CONTAINER),  # DTS
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01", Kind.CONTAINER),  # MXF
    (0, b"YUV4MPEG2 ", Kind.CONTAINER),
    (0, b"DKIF\x00\x00", Kind.CONTAINER),
    (0, b"\x1f\x07\x00", Kind.CONTAINER),  # DV
)
_STILL_BRANDS = frozenset((b"avif", b"heic", b"heix", b"heif", b"mif1", b"heim", b"heis"))
_SEQUENCE_BRANDS = frozenset((b"avis", b"hevc", b"hevx", b"msf1"))
_OLD_QUICKTIME = frozenset((b"moov", b"mdat", b"wide", b"skip", b"free", b"pnot"))
_MAY_BE_ANIMATED = (b"GIF8", b"\x89PNG", b"RIFF")


def sniff(path: Path) -> Kind | None:
    """The kind of a file by its content; None where it is no known media.

    Raises:
        MediaError: The file cannot be read.
    """
    with media_errors(), path.open("rb") as file:
        head = file.read(_HEAD)
    kind = _kind(head)
    if kind is Kind.IMAGE and (head.startswith(_MAY_BE_ANIMATED) or head[4:8] == b"ftyp"):
        require("media", "PIL")
        from cart_qdrant.media.image import is_animated

        return Kind.ANIMATION if is_animated(path) else Kind.IMAGE
    return kind


def _kind(head: bytes) -> Kind | None:
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return kind
    for test, kind in _TESTS:
        if test(head):
            return kind
    return None


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS | _SEQUENCE_BRANDS


def _is_quicktime(head: bytes) -> bool:
    return head[4:8] == b"ftyp" or (head[4:8] in _OLD_QUICKTIME and len(head) >= 16)


def _is_bmp(head: bytes) -> bool:
    # The size of the second header tells a bitmap from a text that begins with BM.
    return head.startswith(b"BM") and head[14:18] in {
        bytes((size, 0, 0, 0)) for size in (12, 40, 52, 56, 64, 108, 124)
    }


def _is_pnm(head: bytes) -> bool:
    return len(head) > 3 and head[:1] == b"P" and head[1:2] in b"123456" and _is_pnm_size(head[2:])


def _is_pnm_size(rest: bytes) -> bool:
    words = b" ".join(line.split(b"#")[0] for line in rest.split(b"\n")).split()[:2]
    return rest[:1].isspace() and len(words) == 2 and all(word.isdigit() for word in words)


def _is_mpeg_audio(head: bytes) -> bool:
    """MP3, MP2 and AAC in ADTS: a sync word and a header without reserved values."""
    head = head.lstrip(b"\0")
    if len(head) < 4 or head[0] != 0xFF:
        return False
    layer, rate, bits = (head[1] >> 1) & 3, (head[2] >> 2) & 3, head[2] >> 4
    if head[1] & 0xF6 == 0xF0:  # ADTS has layer 0
        return rate != 3 or bits & 3 != 3
    # Layer 3 of this field would be Layer I, which is also how UTF-16 text begins.
    is_sync = head[1] & 0xE0 == 0xE0 and (head[1] >> 3) & 3 != 1
    return is_sync and layer in (1, 2) and rate != 3 and bits not in (0, 15)


def _is_transport_stream(head: bytes) -> bool:
    # 188 bytes a packet; 192 with a time stamp before each (m2ts).
    return any(
        len(head) > start + 2 * step and all(head[start + n * step] == 0x47 for n in range(3))
        for start, step in ((0, 188), (4, 192))
    )


_TESTS: tuple[tuple[Callable[[bytes], bool], Kind], ...] = (
    (_is_heif, Kind.IMAGE),
    (_is_quicktime, Kind.CONTAINER),
    (_is_bmp, Kind.IMAGE),
    (_is_pnm, Kind.IMAGE),
    (_is_mpeg_audio, Kind.CONTAINER),
    (_is_transport_stream, Kind.CONTAINER),
)
