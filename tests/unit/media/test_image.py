"""Any kind of picture becomes upright RGB of bounded size."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media.exif import read_exif
from cart_qdrant.media.image import MAX_ASPECT, fit, load_image, probe_image
from tests import media_factory as make

CONFIG = SegmentConfig()


def _load(path: Path, config: SegmentConfig = CONFIG) -> make.ByteArray:
    notes: list[str] = []
    rgb = load_image(path, config, notes.append)
    assert notes == []
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    return rgb


@given(width=st.integers(1, 40_000), height=st.integers(1, 40_000), side=st.integers(32, 1024))
def test_fit_bounds_both_sides_and_never_enlarges(width: int, height: int, side: int) -> None:
    w, h = fit(width, height, side)
    assert 1 <= w <= width and 1 <= h <= height
    assert min(w, h) <= side and max(w, h) <= MAX_ASPECT * side
    if max(width, height) <= MAX_ASPECT * min(width, height):
        assert (min(w, h) == side) == (min(width, height) >= side)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = make.write_image(tmp_path / "a.jpg", quality=95, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(_load(path), upright)
    info = probe_image(path, CONFIG)
    assert (info.height, info.width) == upright.shape[:2]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_on_white(tmp_path: Path, mode: str) -> None:
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[:, 30:] = (200, 200, 200, 255)
    picture = Image.fromarray(rgba)
    path = tmp_path / ("a.tiff" if mode == "PA" else "a.png")
    if mode == "PA":
        mode = "LA"  # Pillow writes no PA; TIFF keeps LA apart from PNG's
    picture.convert(mode).save(path)
    rgb = _load(path)
    assert (rgb[:, :29] == 255).all()
    assert np.abs(rgb[:, 31:].astype(int) - 200).max() <= 3


def test_colour_key_is_transparent(tmp_path: Path) -> None:
    frame = np.full((40, 60, 3), (10, 20, 30), np.uint8)
    frame[:, 30:] = 200
    path = make.write_image(tmp_path / "a.png", frame, transparency=(10, 20, 30))
    assert (_load(path)[:, :29] == 255).all()


def test_cmyk_keeps_its_colours(tmp_path: Path) -> None:
    red = np.full((64, 64, 3), (220, 30, 30), np.uint8)
    Image.fromarray(red).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(_load(tmp_path / "a.jpg").astype(int) - red).max() < 12


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_bilevel_and_palette(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    picture = Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / "a.png")
    assert np.array_equal(_load(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))


def test_16_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65_535, 256), (64, 1)).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    rgb = _load(tmp_path / "a.png").astype(int)
    assert np.abs(rgb[:, :, 0] - ramp / 257).max() <= 1.5


def test_large_picture_is_scaled_down_and_looks_the_same(tmp_path: Path) -> None:
    scene = make.scene(1, width=2400, height=1800)
    path = make.write_image(tmp_path / "a.jpg", scene, quality=90)
    rgb = _load(path, SegmentConfig(max_side=60))
    assert rgb.shape == (60, 80, 3)
    small = np.asarray(Image.fromarray(scene).resize((80, 60), Image.Resampling.BOX))
    assert np.abs(rgb.astype(int) - small.astype(int)).mean() < 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
def test_strips_make_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    picture = Image.fromarray(make.scene(2, width=903, height=701))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "a.png")
    config = SegmentConfig(max_side=64)
    whole = _load(tmp_path / "a.png", config)
    monkeypatch.setattr("cart_qdrant.media.image._STRIP", 5000)
    assert np.array_equal(_load(tmp_path / "a.png", config), whole)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.bmp"])
def test_truncated_picture_is_refused(tmp_path: Path, name: str) -> None:
    path = make.truncate(make.write_image(tmp_path / name, make.scene(1, width=400)), 0.3)
    with pytest.raises(MediaError):
        load_image(path, CONFIG, lambda _: None)


def test_truncated_jpeg_gives_its_upper_part(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = make.write_image(tmp_path / "a.jpg", noise)
    whole = _load(path)
    notes: list[str] = []
    part = load_image(make.truncate(path, 0.6), CONFIG, notes.append)
    assert 100 <= part.shape[0] <= 136 and part.shape[1] == 200
    assert np.array_equal(part[:96], whole[:96])
    assert len(notes) == 1 and "truncated" in notes[0]


def test_limit_on_pixels_is_ours_in_both_directions(tmp_path: Path) -> None:
    path = make.write_image(tmp_path / "a.png")
    with pytest.raises(MediaError, match=r"160 x 120 = 19,200 pixels, but the limit is 19,199"):
        load_image(path, SegmentConfig(max_pixels=19_199), lambda _: None)
    limit = Image.MAX_IMAGE_PIXELS
    bomb = make.write_png_bomb(tmp_path / "b.png", 20_000)
    info = probe_image(bomb, SegmentConfig(max_pixels=400_000_000))  # twice Pillow's own limit
    assert (info.width, info.height) == (20_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_texts_of_pictures_are_found(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("Title", "A harbour")
    texts.add_itxt("Description", "boats at dawn, café")
    png = make.write_image(tmp_path / "a.png", pnginfo=texts)
    assert probe_image(png, CONFIG).tags == {
        "title": "A harbour",
        "description": "boats at dawn, café",
    }
    exif = Image.Exif()
    exif[0x010E] = "two dogs on a beach"
    jpg = make.write_image(tmp_path / "a.jpg", exif=exif, comment=b"summer")
    tags = probe_image(jpg, CONFIG).tags
    assert (tags["description"], tags["comment"]) == ("two dogs on a beach", "summer")


def test_decoding_leaves_the_warnings_filter_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make.write_image(tmp_path / "a.jpg")

    def changed(*_: object, **__: object) -> None:
        raise AssertionError("the filter belongs to the whole process, and decoders are threads")

    for name in ("catch_warnings", "filterwarnings", "simplefilter"):
        monkeypatch.setattr(warnings, name, changed)
    assert _load(path).shape[2] == 3
    assert probe_image(path, CONFIG).width > 0


@given(block=st.binary(max_size=200))
def test_exif_reader_reads_or_refuses_any_bytes(block: bytes) -> None:
    for head in (b"", b"Exif\x00\x00II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08"):
        try:
            exif = read_exif(head + block)
        except ValueError:
            continue
        assert 1 <= exif.orientation <= 8


@given(orientation=st.integers(1, 8), order=st.sampled_from("<>"))
def test_exif_reader_knows_both_byte_orders(orientation: int, order: str) -> None:
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    block = mark + struct.pack(order + "HIH", 42, 8, 1) + entry
    assert read_exif(block).orientation == orientation
