"""ImageBind and sentence-transformers models of random weights, through the real loading paths."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cart_qdrant.compute import Compute, ComputeOptions, compute_of
from cart_qdrant.embedders.imagebind.config import ImageBindConfig
from cart_qdrant.embedders.imagebind.download import EXTRA, PACKAGES, needs_vocabulary
from cart_qdrant.embedders.imagebind.model import ImageBind
from cart_qdrant.embedders.imagebind.weights import convert
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.errors import MediaError, MismatchError, MissingExtraError, UsageError
from cart_qdrant.index.index import Index
from cart_qdrant.index.report import IngestReport
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.training.train import train
from tests import media_factory as media
from tests.conftest import short_training
from tests.goldens import inputs

for name in PACKAGES:
    pytest.importorskip(name, reason=EXTRA)
if needs_vocabulary():
    pytest.skip("no package with CLIP's vocabulary is installed", allow_module_level=True)
pytest.importorskip("sentence_transformers", reason='pip install "cart-qdrant[st]"')


@pytest.fixture(scope="module")
def imagebind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a small ImageBind."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = ImageBindConfig(**{**inputs.TINY, "out_embed_dim": 32})
    torch.save(ImageBind(config).state_dict(), folder / "small.pth")
    convert(folder / "small.pth", folder / "imagebind", config=config)
    return folder


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of random weights, saved as sentence-transformers saves one."""
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
    }  # fmt: skip
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": 100, "max_position_embeddings": 32},
        vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    letters = string.ascii_lowercase + string.digits
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokenizer = CLIPTokenizerFast(
        vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=32
    )
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    saved = tmp_path_factory.mktemp("saved")
    SentenceTransformer(str(folder)).save(str(saved))
    return saved


def make_media(folder: Path) -> Path:
    folder.mkdir()
    for n in range(8):
        media.write_image(folder / f"picture-{n}.png", media.scene(n))
        (folder / f"picture-{n}.txt").write_text(f"scene number {n}\n")
    frames = media.moving(50, 24)
    media.write_video(folder / "clip.mp4", frames, sound=media.tone(3.0))
    media.write_audio(folder / "bell.wav", media.tone(3.0, hertz=880))
    return folder


def test_imagebind_from_ingest_to_search(
    imagebind: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_index: Callable[..., Index],
    ingest: Callable[..., IngestReport],
) -> None:
    monkeypatch.setenv("CARTQ_MODELS", str(imagebind))
    root = tmp_path / ".cartq"
    index = open_index(root, open_embedder("imagebind"))
    report = ingest(index, make_media(tmp_path / "media"))
    assert report.failed == []
    assert index.manifest.embedder.spaces == dict.fromkeys(("image", "video", "audio"), "shared")
    kinds = {r.payload["modality"] for r in index.store.scroll() if r.payload}
    assert kinds == {"image", "video", "audio"}
    index.close()

    with Retriever.open(root) as retriever:
        result = retriever.search("a dog", k=20, lane="dense", group_by="none")
        # The answer is the order of the text tower itself.
        q = open_embedder("imagebind").embed_text(["a dog"], "shared")
        assert q is not None
        records = retriever._index.store.scroll(with_vectors=["media"])
        scores = {str(r.id): float(np.dot(r.vector["media"], q[0])) for r in records}
        assert [hit.id for hit in result.hits] == sorted(scores, key=lambda one: -scores[one])
        assert {hit.modality for hit in result.hits} == {"image", "video", "audio"}

    with Index.open(root) as index, index.folder.lock():
        train(index, short_training(tower_steps=60))
        assert index.text_anchors() is None
        text_anchors = index.distilled_anchors()
        assert text_anchors is not None and "scene number 3" in text_anchors.texts
        vectors = open_embedder("imagebind").embed_text(["scene number 3"], "shared")
        kept = text_anchors.values["shared"][text_anchors.texts.index("scene number 3")]
        np.testing.assert_allclose(kept, vectors[0], atol=1e-5)  # type: ignore[index]

    # A trained index is searched without the weights; more media need them.
    monkeypatch.setenv("CARTQ_MODELS", str(tmp_path / "none"))
    with Retriever.open(root) as retriever:
        assert retriever.search("scene number 3").hits[0].path.endswith("picture-3.png")
    with (
        Index.open(root) as index,
        pytest.raises(MissingExtraError, match="cartq models pull imagebind"),
    ):
        index.embedder()


def test_an_index_is_bound_to_the_width_of_its_weights(
    imagebind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARTQ_MODELS", str(imagebind))
    root = tmp_path / ".cartq"
    Index.create(root, open_embedder("imagebind")).close()
    other = tmp_path / "models" / "imagebind"
    config = ImageBindConfig(**inputs.TINY)
    torch.save(ImageBind(config).state_dict(), tmp_path / "other.pth")
    convert(tmp_path / "other.pth", other, config=config)
    assert json.loads((other / "config.json").read_text())["sizes"] == json.loads(
        json.dumps(asdict(config))
    )
    monkeypatch.setenv("CARTQ_MODELS", str(other.parent))
    with (
        Index.open(root) as index,
        pytest.raises(MismatchError, match=r"made with the embedder imagebind.*32-d.*16-d"),
    ):
        index.embedder()


def test_a_sentence_transformers_model_from_ingest_to_search(
    clip_model: Path,
    tmp_path: Path,
    open_index: Callable[..., Index],
    ingest: Callable[..., IngestReport],
) -> None:
    name = f"st:{clip_model}"
    root = tmp_path / ".cartq"
    index = open_index(root, open_embedder(name))
    report = ingest(index, make_media(tmp_path / "media"))
    # What the model does not embed is told, file by file; the rest is stored.
    assert [failure.path.rsplit("/", 1)[-1] for failure in report.failed] == ["bell.wav"]
    assert "audio is not known to the embedder" in report.failed[0].reason
    assert index.manifest.embedder.dim == 24
    assert set(index.manifest.embedder.spaces) == {"image", "video"}
    index.close()
    with Retriever.open(root) as retriever:
        assert len(retriever.search("a dog", k=20, lane="dense").hits) == 9


def test_a_model_of_the_hub_is_loaded_at_the_commit_of_the_index(
    clip_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit upstream, be it of a README, does not make an index unusable."""
    hub = tmp_path / "models--someone--clip"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def push(commit: str) -> None:
        shutil.copytree(clip_model, hub / "snapshots" / commit)
        (hub / "refs").mkdir(exist_ok=True)
        (hub / "refs" / "main").write_text(commit)

    push("a" * 40)
    made = open_embedder("st:someone/clip")
    assert made.version == "a" * 40
    Index.create(tmp_path / ".cartq", made).close()
    push("b" * 40)
    assert open_embedder("st:someone/clip").version == "b" * 40
    with Index.open(tmp_path / ".cartq") as index:
        assert index.embedder().version == "a" * 40
    shutil.rmtree(hub / "snapshots" / ("a" * 40))
    with (
        Index.open(tmp_path / ".cartq") as index,
        pytest.raises(UsageError, match=f"commit {'a' * 40}, which the index was made with"),
    ):
        index.embedder()


def test_vectors_of_a_sentence_transformers_model(clip_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    embedder = open_embedder(f"st:{clip_model}", compute=ComputeOptions(dtype="float32"))
    frames = [media.scene(n) for n in range(3)]
    film = Clip(Modality.VIDEO, frames=tuple(frames), key="x")
    stills = [Clip(Modality.IMAGE, frames=(frame,), key="x") for frame in frames]
    x = embedder.embed_media([film, *stills])
    mean = x[1:].mean(axis=0)
    np.testing.assert_allclose(x[0], mean / np.linalg.norm(mean), atol=1e-5)
    wanted = SentenceTransformer(str(clip_model)).encode([Image.fromarray(frames[0])])[0]
    np.testing.assert_allclose(x[1], wanted / np.linalg.norm(wanted), atol=1e-5)
    short = open_embedder(f"st:{clip_model}", compute=ComputeOptions(dtype="bfloat16"))
    assert compute_of(short) is None  # before the first input
    assert float((short.embed_media(stills) * x[1:]).sum(axis=1).min()) > 0.999
    assert compute_of(short) == Compute("cpu", "bfloat16")
    text: Any = embedder.embed_text(["a dog"], "shared")
    assert np.linalg.norm(text[0]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(MediaError, match=r"st:.* does not embed audio"):
        embedder.embed_media([Clip(Modality.AUDIO, samples=media.tone(1), rate=16_000)])
    with pytest.raises(MediaError, match="without content"):
        embedder.embed_media([Clip(Modality.IMAGE, key="empty")])


def test_other_weights_are_another_version(clip_model: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(clip_model, other)
    assert open_embedder(f"st:{other}").version == open_embedder(f"st:{clip_model}").version
    path = other / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert open_embedder(f"st:{other}").version != open_embedder(f"st:{clip_model}").version


def test_models_that_cannot_be_used_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    for name in ("st:no/such-model", f"st:{tmp_path}", "embeddinggemma2"):
        with pytest.raises(UsageError, match="cannot be loaded") as caught:
            open_embedder(name)
        assert ("the hub does not answer" in caught.value.what) == (str(tmp_path) not in name)
        assert "\n" not in caught.value.what
    from cart_qdrant.embedders.text.folder import text_encoder_folder

    with pytest.raises(UsageError, match="embeds text, but text and images or audio"):
        open_embedder(f"st:{text_encoder_folder()}")
    with pytest.raises(UsageError, match="names no model"):
        open_embedder("st:")
    with pytest.raises(UsageError, match="must be one of auto, imagebind"):
        open_embedder("clip")
