"""Which files FFmpeg opens: those that hold their media themselves, and never another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import MediaError
from cart_qdrant.media import containers
from cart_qdrant.media.segments import decode, probe
from cart_qdrant.media.sniff import Kind, sniff
from cart_qdrant.media.thumbnails import thumbnail
from cart_qdrant.records import Modality
from tests import media_factory as media

ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x00"
"""An empty tag, as MP3 files begin with. FFmpeg looks for the format behind it."""
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n{name}\n"
    "#EXT-X-ENDLIST\n",
    "hls, absolute": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n{path}\n"
    "#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {name}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT4S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
    '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="a" bandwidth="1">'
    "<BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("kind", list(PLAYLISTS))
@pytest.mark.parametrize("suffix", [".mp4", ".mp3", ".m3u8"])
@pytest.mark.parametrize("head", [b"", ID3])
def test_a_playlist_opens_no_other_file(
    tmp_path: Path, kind: str, suffix: str, head: bytes
) -> None:
    secret = media.write_video(tmp_path / "secret.ts", media.moving(1, 16), sound=media.tone(2.0))
    assert list(decode(secret, "s", SegmentConfig()))
    text = PLAYLISTS[kind].format(name=secret.name, path=secret)
    path = tmp_path / f"film{suffix}"
    path.write_bytes(head + text.encode())
    for modality in Modality:
        with pytest.raises(MediaError):
            thumbnail(path, modality, 0.0, 1.0)
    with pytest.raises(MediaError), containers.opened(path):
        pass
    if sniff(path) is not None:
        with pytest.raises(MediaError):
            list(decode(path, "p", SegmentConfig()))
        with pytest.raises(MediaError):
            probe(path)


def test_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    media.write_audio(tmp_path / "secret.wav", media.tone(1.0))
    for name in ("concat:secret.wav", "file:secret.wav", "subfile,,start,0,end,0,,:secret.wav"):
        with pytest.raises(MediaError), containers.opened(Path(name)):
            pass
        Path(name).write_bytes((tmp_path / "secret.wav").read_bytes())
        with containers.opened(Path(name)) as container:  # a file of that name is one
            assert containers.audio_stream(container) is not None


SOUND = {
    "wav": "pcm_s16le", "aiff": "pcm_s16be", "au": "pcm_s16be",
    "caf": "pcm_s16be", "flac": "flac", "ogg": "libopus", "opus": "libopus", "mp3": "libmp3lame",
    "mp2": "mp2", "aac": "aac", "m4a": "aac", "ac3": "ac3", "eac3": "eac3", "tta": "tta",
    "wv": "wavpack", "mka": "flac",
}  # fmt: skip
FILM = {
    "mp4": "mpeg4", "mov": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "avi": "mpeg4",
    "flv": "flv1", "wmv": "msmpeg4", "ts": "mpeg2video", "m2ts": "mpeg2video", "mpg": "mpeg2video",
    "vob": "mpeg2video", "mxf": "mpeg2video", "ivf": "libvpx", "y4m": "wrapped_avframe",
    "3gp": "mpeg4", "m2v": "mpeg2video",
}  # fmt: skip


def write(path: Path, codec: str) -> None:
    """Write a second of sound, or eight pictures, with FFmpeg's own writer of the format."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as out:
        if path.suffix[1:] in SOUND:
            track: Any = out.add_stream(codec, rate=48_000, layout="mono")
            media._encode_audio(out, track, media.tone(1.0))
            return
        stream: Any = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for frame in media.moving(1, 8, width=176, height=144):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            out.mux(stream.encode(picture.reformat(format="yuv420p")))
        out.mux(stream.encode())


@pytest.mark.parametrize(("suffix", "codec"), [*SOUND.items(), *FILM.items()])
def test_every_kind_of_media_that_is_recognised_is_opened(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    try:
        write(path, codec)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    assert sniff(path) is Kind.CONTAINER
    with containers.opened(path) as container:
        found = containers.audio_stream(container) or containers.video_stream(container)
        assert found is not None
