"""A thumbnail shows the file itself, and nothing that the file only refers to."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from cart_qdrant.errors import MediaError
from cart_qdrant.media.thumbnails import HEIGHT, WIDTH, thumbnail
from cart_qdrant.records import Modality
from tests import media_factory as make


def test_a_playlist_shows_no_other_file(tmp_path: Path) -> None:
    secret = make.write_video(tmp_path / "secret.mp4", make.moving(1, 24))
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    hls = tmp_path / "hls.mp4"
    hls.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n")
    for path in (playlist, hls):
        with pytest.raises(MediaError, match="no known media"):
            thumbnail(path, Modality.VIDEO, 0.0, 1.0)


@pytest.mark.parametrize("modality", list(Modality))
def test_each_modality_has_a_thumbnail(tmp_path: Path, modality: Modality) -> None:
    path = {
        Modality.IMAGE: lambda: make.write_image(tmp_path / "a.png"),
        Modality.VIDEO: lambda: make.write_video(tmp_path / "a.mp4", make.moving(1, 24)),
        Modality.AUDIO: lambda: make.write_audio(tmp_path / "a.wav", make.tone(1.0)),
    }[modality]()
    made = thumbnail(path, modality, 0.0, 1.0)
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.get_format_mimetype() == made.mime
        assert 0 < image.width <= WIDTH and 0 < image.height <= HEIGHT
