"""`cartq caption`: captioners on a real index, resumed, weighed, kept by later ingests."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant.captions.models import (
    EndpointCaptioner,
    HubCaptioner,
    TranscriptSegment,
    open_captioner,
)
from cart_qdrant.config import SegmentConfig
from cart_qdrant.errors import CaptionError, UsageError
from cart_qdrant.index.annotate import LOW_CONFIDENCE, caption_index
from cart_qdrant.index.index import Index
from cart_qdrant.index.report import IngestReport
from cart_qdrant.progress import Silent
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training.corpus import read_corpus
from tests import media_factory as media
from tests.conftest import copy_of, points

Opener = Callable[..., Index]
Ingester = Callable[..., IngestReport]


class Colours:
    """Tells the mean colour of a picture; fails on what it is told to."""

    name = "colours"

    def __init__(self, broken: int = 0) -> None:
        self.seen = 0
        self.broken = broken

    def caption(self, images: Sequence[Any]) -> list[str]:
        if len(images) > 1 and self.broken:
            raise CaptionError("out of memory.")
        if self.broken:
            self.broken -= 1
            raise CaptionError("this picture is too much.")
        self.seen += len(images)
        return [f"mean {int(1000 * image.mean())} of a picture" for image in images]


class Parrot:
    """Hears a word in every second of sound."""

    name = "parrot"

    def __init__(self) -> None:
        self.heard: list[float] = []

    def transcribe(self, samples: Any, rate: int) -> list[TranscriptSegment]:
        self.heard.append(len(samples) / rate)
        return [TranscriptSegment(n, n + 1, f"word {n}") for n in range(int(len(samples) / rate))]


@pytest.fixture
def index(tmp_path: Path, open_index: Opener, ingest: Ingester) -> Index:
    """Six pictures, one with a caption, a clip of two scenes with sound, and a sound."""
    folder = tmp_path / "media"
    folder.mkdir()
    for n in range(6):
        media.write_image(folder / f"picture-{n}.png", media.scene(n))
    (folder / "picture-0.txt").write_text("a dog on a surfboard\n")
    frames = media.moving(50, 48) + media.moving(51, 48)
    media.write_video(folder / "clip.mp4", frames, sound=media.tone(6.0))
    media.write_audio(folder / "bell.wav", media.tone(13.0, hertz=880))
    found = open_index(tmp_path / ".cartq")
    assert ingest(found, folder).failed == []
    return found


def by_source(index: Index, source: str) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    for payload in points(index).values():
        found = [c for c in payload["captions"] if c["source"] == source]
        if found:
            out.setdefault(payload["path"], []).extend(found)
    return out


def test_pictures_and_shots_are_described_once(index: Index) -> None:
    model = Colours()
    report = caption_index(index, model, Silent())
    assert report.failed == [] and report.items == report.captions == model.seen
    made = by_source(index, "generated")
    assert "media/picture-0.png" not in made  # people have described it
    assert len(made["media/picture-1.png"]) == 1
    assert made["media/picture-1.png"][0]["by"] == "colours"
    assert "start" not in made["media/picture-1.png"][0]
    shots = made["media/clip.mp4"]
    assert len(shots) >= 2 and all(shot["start"] < shot["end"] for shot in shots)
    assert "media/bell.wav" not in made

    again = caption_index(index, model, Silent())
    assert (again.items, again.captions) == (0, 0)
    assert again.skipped == report.items + report.skipped
    every = caption_index(index, model, Silent(), every=True)
    assert every.items == 1
    assert len(by_source(index, "generated")["media/picture-0.png"]) == 1


def test_files_are_cut_for_captions_as_they_were_ingested(
    tmp_path: Path, open_index: Opener, ingest: Ingester
) -> None:
    (tmp_path / "media").mkdir()
    frames = media.moving(50, 48) + media.moving(51, 48)
    media.write_video(tmp_path / "media" / "clip.mp4", frames, sound=media.tone(12.0))
    found = open_index(tmp_path / ".cartq")
    cut = SegmentConfig(max_shot=2.0, audio_window=4.0)
    ingest(found, tmp_path / "media", segments=cut)
    for model in (Colours(), Parrot()):
        assert caption_index(found, model, Silent()).failed == []
    kinds = [p["modality"] for p in points(found).values() if p["captions"]]
    assert (kinds.count("video"), kinds.count("audio")) == (6, 3)


def test_what_is_made_is_found_by_its_words(index: Index) -> None:
    caption_index(index, Colours(), Silent())
    text = by_source(index, "generated")["media/picture-3.png"][0]["text"]
    vectors = [p["vector"].get("caption") for p in points(index).values()]
    assert sum(v is not None for v in vectors) >= 8
    retriever = Retriever(index)
    near = {hit.path: hit.caption for hit in retriever.search(text, lane="caption").hits[:3]}
    assert near["media/picture-3.png"] == text
    assert retriever.search(text, lane="bm25").hits[0].path == "media/picture-3.png"


def test_a_run_stops_at_its_limit_and_is_resumed(index: Index) -> None:
    model = Colours()
    first = caption_index(index, model, Silent(), limit=3)
    assert first.items == model.seen == 3
    second = caption_index(index, model, Silent())
    assert second.items >= 4 and model.seen == first.items + second.items


def test_speech_is_kept_with_its_seconds(index: Index) -> None:
    parrot = Parrot()
    report = caption_index(index, parrot, Silent())
    assert report.failed == []
    # Windows that follow each other are heard as one.
    assert sorted(round(s) for s in parrot.heard) == [6, 13]
    said = by_source(index, "speech")
    for payload in points(index).values():
        for c in payload["captions"]:
            if c["source"] == "speech":
                assert c["start"] < payload["end"] and c["end"] > payload["start"]
    assert {c["text"] for c in said["media/bell.wav"]} == {f"word {n}" for n in range(13)}
    kinds = {
        p["modality"] for p in points(index).values()
        if any(c["source"] == "speech" for c in p["captions"])
    }  # fmt: skip
    assert kinds == {"audio", "video"}
    assert caption_index(index, parrot, Silent()).items == 0
    hit = Retriever(index).search("word 12", lane="bm25", group_by="none").hits[0]
    assert hit.path == "media/bell.wav" and hit.start <= 12 < hit.end
    assert hit.caption == "word 12" and hit.moment == pytest.approx((12, 13))


def test_a_failing_picture_does_not_stop_the_run(index: Index) -> None:
    report = caption_index(index, Colours(broken=2), Silent())
    assert [f.reason for f in report.failed] == ["this picture is too much."] * 2
    assert report.captions >= 5
    broken = Colours(broken=99)
    broken.name = "broken"
    with pytest.raises(CaptionError, match="this picture is too much"):
        caption_index(index, broken, Silent())
    assert broken.broken == 99 - 3  # it is not tried on every picture


def test_a_file_that_is_gone_is_reported(index: Index, tmp_path: Path) -> None:
    (tmp_path / "media" / "picture-2.png").unlink()
    report = caption_index(index, Colours(), Silent())
    assert [f.path for f in report.failed] == ["media/picture-2.png"]
    assert report.captions >= 5


def test_speech_of_a_file_that_is_gone_is_tried_again(index: Index, tmp_path: Path) -> None:
    (tmp_path / "media" / "bell.wav").rename(tmp_path / "bell.wav")
    report = caption_index(index, Parrot(), Silent())
    assert [f.path for f in report.failed] == ["media/bell.wav"]
    assert "media/bell.wav" not in by_source(index, "speech")
    (tmp_path / "bell.wav").rename(tmp_path / "media" / "bell.wav")
    assert caption_index(index, Parrot(), Silent()).items == 2
    assert "media/bell.wav" in by_source(index, "speech")


def test_spoken_pictures_are_described_as_well(index: Index) -> None:
    caption_index(index, Parrot(), Silent())
    caption_index(index, Colours(), Silent())
    assert len(by_source(index, "generated")["media/clip.mp4"]) >= 2


def test_a_killed_run_loses_no_caption(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(index.store, "set_payload", stop)
        with pytest.raises(KeyboardInterrupt):
            caption_index(index, Colours(), Silent())
    assert by_source(index, "generated") == {}
    report = caption_index(index, Colours(), Silent())
    described = [p for p in points(index).values() if p["captions"]]
    assert len(described) >= report.captions >= 7
    assert all(p["vector"].get("caption") is not None for p in described)


def test_files_that_are_gone_do_not_use_up_the_limit(index: Index, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        (tmp_path / "media" / f"picture-{n}.png").unlink()
    seen = 0
    for _ in range(4):
        seen += caption_index(index, Colours(), Silent(), limit=1).items
    assert seen >= 3


def test_captions_by_models_stay_with_their_segment(
    index: Index, tmp_path: Path, ingest: Ingester
) -> None:
    caption_index(index, Colours(), Silent())
    before = {one: p["captions"] for one, p in points(index).items()}
    (tmp_path / "media" / "clip.mp4").rename(tmp_path / "media" / "other.mp4")
    assert ingest(index, tmp_path / "media").renamed == 1
    after = [p for p in points(index).values() if p["path"] == "media/other.mp4"]
    made = [[c for c in p["captions"] if "by" in c] for p in after]
    assert sorted(map(len, made)) == sorted(
        len([c for c in captions if "by" in c])
        for one, captions in before.items()
        if one not in points(index)
    )
    assert all(not m for p, m in zip(after, made, strict=True) if p["modality"] == "audio")


def test_ingesting_without_captions_lets_models_begin_anew(
    index: Index, tmp_path: Path, ingest: Ingester
) -> None:
    report = caption_index(index, Colours(), Silent())
    ingest(index, tmp_path / "media", use_captions=False)
    assert by_source(index, "generated") == {}
    assert caption_index(index, Colours(), Silent(), every=True).captions >= report.captions


def test_later_ingests_keep_what_models_made(
    index: Index, tmp_path: Path, ingest: Ingester
) -> None:
    caption_index(index, Colours(), Silent())
    before = by_source(index, "generated")
    folder = tmp_path / "media"
    (folder / "picture-1.txt").write_text("a cat on a mat\n")
    report = ingest(index, folder)
    assert report.recaptioned == 1
    made = by_source(index, "generated")
    assert made == before
    (row,) = [p for p in points(index).values() if p["path"] == "media/picture-1.png"]
    assert row["captions"][0]["source"] == "txt"
    assert row["captioned_by"] == ["colours"]
    # Other content is another picture: what was said of it is gone.
    media.write_image(folder / "picture-4.png", media.scene(77))
    ingest(index, folder)
    assert "media/picture-4.png" not in by_source(index, "generated")
    assert caption_index(index, Colours(), Silent()).items == 1


def test_captions_weigh_by_source_and_fit(index: Index) -> None:
    caption_index(index, Colours(), Silent())
    corpus = read_corpus(index)
    trust = dict(zip(corpus.texts, corpus.trust_P.tolist(), strict=True))
    assert trust["a dog on a surfboard"] == 1
    assert all(w == pytest.approx(0.7) for t, w in trust.items() if t.startswith("mean"))


def test_labels_and_their_fit_on_a_real_index(
    small_index: Path, small_media: Path, tmp_path: Path
) -> None:
    root = tmp_path / ".cartq"
    copy_of(small_index, root)
    shutil.copytree(small_media, tmp_path / "media")
    with Index.open(root) as index, index.folder.lock():
        report = caption_index(index, None, Silent())
        labels = by_source(index, "label")
        assert len(labels["media/picture-3.png"]) == 1
        sure = [c["confidence"] for found in labels.values() for c in found if "confidence" in c]
        # The likeliest label of each picture fits it better than it fits most others.
        assert len(sure) >= 8 and np.mean(sure) > 0.7
        assert all(d.confidence < LOW_CONFIDENCE for d in report.low_confidence)
        # No text of this embedder reaches sound.
        assert "media/bell.wav" not in labels

        class Wrong:
            name = "wrong"

            def caption(self, images: Sequence[Any]) -> list[str]:
                taken = [c["text"] for found in labels.values() for c in found]
                return [taken[(n + 5) % len(taken)] for n in range(len(images))]

        wrong = caption_index(index, Wrong(), Silent(), every=True)
        assert wrong.low_confidence
        made = [c for found in by_source(index, "generated").values() for c in found]
        assert np.mean([c["confidence"] for c in made]) < np.mean(sure)


def test_labels_need_texts(index: Index) -> None:
    with pytest.raises(UsageError, match="patch has no texts"):
        caption_index(index, None, Silent())


# The endpoint, against a server of our own.


class _Chat(BaseHTTPRequestHandler):
    answers: list[int]
    bodies: list[dict[str, Any]]

    def do_POST(self) -> None:
        kind = type(self)
        kind.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        kind.bodies[-1]["key"] = self.headers.get("Authorization")
        status = kind.answers.pop(0) if kind.answers else 200
        body = json.dumps({"choices": [{"message": {"content": " a  red\nsquare "}}]})
        if status == 299:
            status, body = 200, "[]"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def chat() -> Iterator[tuple[type[_Chat], str]]:
    kind = type("Chat", (_Chat,), {"answers": [], "bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kind, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_asked_picture_by_picture(
    chat: tuple[type[_Chat], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, url = chat
    monkeypatch.setenv("CARTQ_CAPTION_KEY", "secret")
    kind.answers = [429, 503, 200, 200]
    model = EndpointCaptioner(url, "some-vlm", wait=0.01)
    assert model.caption([media.scene(1), media.scene(2)]) == [" a  red\nsquare "] * 2
    assert len(kind.bodies) == 4
    body = kind.bodies[-1]
    assert body["model"] == "some-vlm" and body["key"] == "Bearer secret"
    picture = body["messages"][0]["content"][1]["image_url"]["url"]
    assert picture.startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [([401], "refuses with 401"), ([500] * 9, "answers 500"), ([299], "does not speak")],
)
def test_an_endpoint_that_fails_says_how(
    chat: tuple[type[_Chat], str], answers: list[int], reason: str
) -> None:
    kind, url = chat
    kind.answers = answers
    with pytest.raises(CaptionError, match=reason):
        EndpointCaptioner(url, "some-vlm", wait=0.001).caption([media.scene(1)])


def test_the_key_of_openai_is_told_to_openai_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CARTQ_CAPTION_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert EndpointCaptioner("http://127.0.0.1:1/v1", "m")._headers == {}
    assert "secret" in EndpointCaptioner("https://api.openai.com/v1", "m")._headers["Authorization"]


def test_an_endpoint_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptionError, match="no address"):
        EndpointCaptioner("http://host:port/v1", "m").caption([media.scene(1)])
    with pytest.raises(CaptionError, match="does not answer"):
        EndpointCaptioner("http://127.0.0.1:1/v1", "m", wait=0.001).caption([media.scene(1)])


# A small model of random weights, through the real loading path.


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason='pip install "cart-qdrant[caption]"')
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipProcessor,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(20))]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = BlipConfig(
        text_config={
            **small, "vocab_size": len(words), "encoder_hidden_size": 16, "bos_token_id": 2,
            "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16,
        image_text_hidden_size=16,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab_file=str(vocabulary))
    pictures = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def test_a_captioning_model_of_transformers(blip: Path) -> None:
    model = open_captioner(f"hf:{blip}")
    assert isinstance(model, HubCaptioner)
    texts = model.caption([media.scene(n) for n in range(3)])
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    assert texts == model.caption([media.scene(n) for n in range(3)])


def test_captioners_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="must be labels, hf:MODEL"):
        open_captioner("blip")
    with pytest.raises(UsageError, match="needs a model"):
        open_captioner("http://localhost:1/v1")
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_captioner(f"hf:{tmp_path}")
