"""A file of which a part failed: the rest is found, the failure is named until it is mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cart_qdrant.errors import MediaError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality
from tests import media_factory as media
from tests.conftest import PatchEmbedder, points

Run = Callable[..., Any]


class Deaf(PatchEmbedder):
    """Has no vector for sound while `deaf` is set."""

    deaf = True

    def embed_media(self, clips: Sequence[Clip]) -> Any:
        if self.deaf and any(clip.modality is Modality.AUDIO for clip in clips):
            raise MediaError("sound has no vector.")
        return super().embed_media(clips)


def test_a_part_that_failed_is_tried_again(tmp_path: Path, open_index: Run, ingest: Run) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    media.write_video(folder / "clip.mp4", media.moving(1, 24), sound=media.tone(3.0))
    media.write_image(folder / "good.png")
    embedder = Deaf()
    index = open_index(tmp_path / ".cartq", embedder)
    for unchanged in (0, 1):  # named again by every run
        report = ingest(index, folder)
        assert [f.path for f in report.failed] == ["m/clip.mp4"]
        assert report.failed[0].reason == "partly stored: sound has no vector."
        assert report.unchanged == unchanged
        assert {p["modality"] for p in points(index).values()} == {"video", "image"}
    embedder.deaf = False
    report = ingest(index, folder)
    assert (report.failed, report.unchanged) == ([], 1)
    assert {p["modality"] for p in points(index).values()} == {"video", "image", "audio"}
    assert ingest(index, folder).unchanged == 2
