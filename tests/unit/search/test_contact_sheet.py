"""The contact sheet: complete in itself, nothing in it can become markup, nothing stops it."""

from __future__ import annotations

import base64
import io
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cart_qdrant.errors import MediaError, UsageError
from cart_qdrant.media.folder import MediaFolder
from cart_qdrant.media.thumbnails import HEIGHT, WIDTH, thumbnail
from cart_qdrant.records import Hit, Modality, clock
from cart_qdrant.search.contact_sheet import contact_sheet

FPS, RATE = 10, 16_000
RED, BLUE = (220, 30, 30), (30, 30, 220)


class Page(HTMLParser):
    """Tags, links, pictures and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [found[name] or "" for kind, found in self.tags if kind == tag and name in found]

    def pictures(self) -> list[Image.Image]:
        return [
            Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))
            for src in self.values("img", "src")
        ]


def hit(path: str, modality: Modality = Modality.IMAGE, **more: Any) -> Hit:
    values = {
        "rank": 1, "id": "x", "start": 0.0, "end": 0.0, "score": -3.16, "similarity": 0.5,
        "lane": "fused", "identifier": "17-203-44-9-0", "caption": "a dog", "payload": {},
    }  # fmt: skip
    return Hit(path=path, modality=modality, **{**values, **more})


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, a video (2 s red, then 2 s blue) and a sound (1 s silent, then 1 s loud)."""
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (640, 200), RED).save(folder / "a.jpg")
    with av.open(str(folder / "v.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(4 * FPS):
            frame = np.full((48, 64, 3), RED if n < 2 * FPS else BLUE, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(folder / "s.mka"), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        wave = np.zeros((1, 2 * RATE), dtype=np.int16)
        wave[:, RATE:] = (np.sin(np.arange(RATE) * 0.3) * 20_000).astype(np.int16)
        for first in range(0, 2 * RATE, RATE // 10):
            part = np.ascontiguousarray(wave[:, first : first + RATE // 10])
            block = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
            block.sample_rate, block.pts = RATE, first
            out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    return folder


def test_every_kind_of_media_has_its_picture(media: Path, tmp_path: Path) -> None:
    hits = [
        hit("a.jpg", rank=1),
        hit("v.mp4", Modality.VIDEO, rank=2, start=2.0, end=3.5),
        hit("s.mka", Modality.AUDIO, rank=3, start=0.0, end=2.0),
    ]
    out = contact_sheet(
        "q", hits, media=MediaFolder(media), out=tmp_path / "new" / "x.html", took_ms=4.25
    )
    page = Page(out)
    photo, frame, wave = page.pictures()
    assert (photo.format, frame.format, wave.format) == ("JPEG", "JPEG", "PNG")
    assert all(p.width <= WIDTH and p.height <= HEIGHT for p in (photo, frame, wave))
    assert photo.width / photo.height == pytest.approx(3.2, abs=0.05)
    assert frame.convert("RGB").resize((1, 1)).getpixel((0, 0)) == pytest.approx(BLUE, abs=30)
    for said in ("3 hits", "4.2 ms", "0:02–0:03", "0:00–0:02", "similarity 0.500", "17-203-44-9-0"):  # noqa: RUF001
        assert said in page.text
    links = dict.fromkeys(page.values("a", "href"))
    assert list(links) == [
        (media / "a.jpg").as_uri(),
        (media / "v.mp4").as_uri() + "#t=2",
        (media / "s.mka").as_uri() + "#t=0",
    ]


@pytest.mark.parametrize(
    ("start", "end", "colour"), [(0, 1, RED), (1, 2, RED), (1, 4, BLUE), (2, 4, BLUE)]
)
def test_the_frame_is_of_the_middle(
    media: Path, start: float, end: float, colour: tuple[int, int, int]
) -> None:
    made = Image.open(io.BytesIO(thumbnail(media / "v.mp4", Modality.VIDEO, start, end).data))
    assert made.convert("RGB").resize((1, 1)).getpixel((0, 0)) == pytest.approx(colour, abs=30)


def test_the_waveform_follows_the_sound(media: Path) -> None:
    def ink(start: float, end: float) -> np.ndarray[Any, Any]:
        made = thumbnail(media / "s.mka", Modality.AUDIO, start, end)
        return np.asarray(Image.open(io.BytesIO(made.data)))[..., 3] > 0

    both = ink(0, 2).sum(axis=0)
    quiet, loud = both[: WIDTH // 2 - 8].max(), both[WIDTH // 2 + 8 :].max()
    assert quiet < 8 < HEIGHT / 2 < loud
    assert ink(0, 0.9).sum() < ink(1.1, 2).sum() / 5


def test_nothing_but_data_is_loaded_and_nothing_runs(media: Path, tmp_path: Path) -> None:
    page = Page(
        contact_sheet("q", [hit("a.jpg")], media=MediaFolder(media), out=tmp_path / "x.html")
    )
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert all(src.startswith("data:image/") for src in page.values("img", "src"))
    assert all(urlsplit(href).scheme == "file" for href in page.values("a", "href"))
    assert "default-src 'none'" in page.values("meta", "content")[0]
    assert "http" not in (tmp_path / "x.html").read_text().replace("http-equiv", "")


NASTY = st.text(max_size=20) | st.sampled_from(
    ['"><script>alert(1)</script>', "' onerror='x", "</style><b>", "{rank}", "&lt;b&gt;", "\udcff"]
)


@settings(max_examples=60)
@given(query=NASTY, caption=NASTY, lane=NASTY, identifier=NASTY, name=NASTY)
def test_no_text_becomes_markup(
    tmp_path_factory: pytest.TempPathFactory,
    query: str, caption: str, lane: str, identifier: str, name: str,
) -> None:  # fmt: skip
    out = tmp_path_factory.getbasetemp() / "nasty.html"
    path = "d/" + name.replace("\0", "")
    plain = Page(contact_sheet("q", [hit("d/x")], media=MediaFolder(out.parent), out=out))
    nasty = hit(path, caption=caption or "c", lane=lane, identifier=identifier or "i")
    page = Page(contact_sheet(query, [nasty], media=MediaFolder(out.parent), out=out))
    drop = ("wbr",)  # one for each break of the path
    shape = [(tag, sorted(attrs)) for tag, attrs in page.tags if tag not in drop]
    assert shape == [(tag, sorted(attrs)) for tag, attrs in plain.tags if tag not in drop]
    wanted = [text.encode("utf-8", "replace").decode() for text in (query, caption, lane)]
    for text in wanted:
        # HTML reads every newline alike, and NUL not at all.
        assert "".join(text.split()).replace("\0", "") in "".join(page.text.split()).replace(
            "\0", ""
        )


@pytest.mark.parametrize(
    "name", ["a b#c?d%.jpg", "ü.jpg", "a\nb.jpg", "<i>.jpg", os.fsdecode(b"\xff.jpg")]
)
def test_a_link_leads_to_the_file(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / name, "JPEG")
    page = Page(
        contact_sheet("q", [hit(name)], media=MediaFolder(tmp_path), out=tmp_path / "x.html")
    )
    href = page.values("a", "href")[0]
    assert len(page.pictures()) == 1
    target = unquote(urlsplit(href).path, errors="surrogateescape")
    assert Path(target) == tmp_path / name and not urlsplit(href).fragment


@pytest.mark.parametrize("name", ["../secret.png", "{secret}", "link.png", "\0", "x" * 5000])
def test_a_file_outside_is_neither_shown_nor_linked(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), RED).save(secret)
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "link.png").symlink_to(secret)
    one = hit(name.format(secret=secret))
    page = Page(contact_sheet("q", [one], media=MediaFolder(folder), out=tmp_path / "x.html"))
    assert page.pictures() == [] and page.values("a", "href") == []
    assert "its path" in page.text


@pytest.mark.parametrize("modality", list(Modality))
@pytest.mark.parametrize("content", [None, b"", b"no media at all", b"\xff\xd8\xff\xe0 cut"])
def test_a_file_that_cannot_be_shown_is_a_grey_tile(
    tmp_path: Path, modality: Modality, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "a.bin").write_bytes(content)
    one = hit("a.bin", modality, start=1.0, end=2.0)
    page = Page(contact_sheet("q", [one], media=MediaFolder(tmp_path), out=tmp_path / "x.html"))
    assert page.pictures() == []
    assert page.values("span", "class")[0] == "none"
    assert ("missing" in page.text) == (content is None)
    assert "a dog" in page.text


def test_a_time_past_the_end_is_no_crash(media: Path) -> None:
    made = thumbnail(media / "v.mp4", Modality.VIDEO, 50, 60)
    assert Image.open(io.BytesIO(made.data)).convert("RGB").resize((1, 1)).getpixel(
        (0, 0)
    ) == pytest.approx(BLUE, abs=30)
    with pytest.raises(MediaError, match="no audio at that time"):
        thumbnail(media / "s.mka", Modality.AUDIO, 50, 60)


def test_an_animation_is_shown(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    for name in ("a.webp", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=500)
        made = thumbnail(tmp_path / name, Modality.VIDEO, 0.0, 1.0)
        assert Image.open(io.BytesIO(made.data)).size == (32, 32)


def test_no_hits_and_no_caption_are_said(tmp_path: Path) -> None:
    empty = Page(contact_sheet("q", [], media=MediaFolder(tmp_path), out=tmp_path / "x.html"))
    assert "0 hits" in empty.text and "Nothing found" in empty.text
    bare = hit("a.jpg", caption=None, identifier=None)
    page = Page(contact_sheet("q", [bare], media=MediaFolder(tmp_path), out=tmp_path / "x.html"))
    assert "1 hit ·" in page.text and "no caption" in page.text
    assert not [tag for tag, _ in page.tags if tag == "code"]


def test_a_sheet_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "folder", tmp_path / "file" / "x.html"):
        with pytest.raises(UsageError, match="cannot be written"):
            contact_sheet("q", [], media=MediaFolder(tmp_path), out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@given(st.floats(0, 1e6))
def test_the_clock_is_rounded_down(seconds: float) -> None:
    total = 0
    for part in clock(seconds).split(":"):
        total = total * 60 + int(part)
    assert total == int(seconds)


def test_the_clock_is_written_as_people_do() -> None:
    assert [clock(s) for s in (0, 9.9, 61, 3600, 36_061)] == [
        "0:00", "0:09", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip
