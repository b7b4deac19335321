"""ImageBind: goldens of the reference implementation, the published names, the loading path.

The goldens are made by `tests/goldens/make_imagebind.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from cart_qdrant.compute import ComputeOptions
from cart_qdrant.embedders.imagebind import download as imagebind_files
from cart_qdrant.embedders.imagebind.config import MODALITIES, ImageBindConfig
from cart_qdrant.embedders.imagebind.download import installed
from cart_qdrant.embedders.imagebind.embedder import ImageBindEmbedder
from cart_qdrant.embedders.imagebind.model import ImageBind
from cart_qdrant.embedders.imagebind.weights import convert, load_towers, loadable
from cart_qdrant.embedders.registry import lite_available, open_embedder
from cart_qdrant.errors import ConfigError, MismatchError, MissingExtraError
from cart_qdrant.media.clip import Clip
from cart_qdrant.records import Modality
from tests.goldens import inputs

GOLDENS = Path(inputs.__file__).parent
needs_extra = pytest.mark.skipif(
    bool(imagebind_files.missing_packages()) or imagebind_files.needs_vocabulary(),
    reason=f"{imagebind_files.EXTRA}, and CLIP's vocabulary in a package",
)
FACTS = json.loads((GOLDENS / "imagebind.json").read_text())


@pytest.fixture(scope="module")
def goldens() -> dict[str, Any]:
    return load_file(GOLDENS / "imagebind.safetensors")


def shapes(model: ImageBind) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in model.state_dict().items()}


@pytest.fixture(scope="module")
def tiny() -> ImageBind:
    """The model whose vectors the goldens are."""
    model = ImageBind(ImageBindConfig(**inputs.TINY)).eval()
    made = {name: torch.from_numpy(x) for name, x in inputs.weights(shapes(model)).items()}
    model.load_state_dict({**model.state_dict(), **made})
    return model


@pytest.fixture(scope="module")
def checkpoint(tiny: ImageBind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its state dict as it is published."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(tiny.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def weights(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "imagebind"
    convert(checkpoint, folder, config=ImageBindConfig(**inputs.TINY))
    return folder


def relative_error(found: Tensor, golden: Any) -> float:
    wanted = torch.nn.functional.normalize(torch.from_numpy(golden), dim=-1)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", ["text", "vision", "film", "audio", "depth", "thermal", "imu"])
def test_each_tower_agrees_with_the_reference(
    tiny: ImageBind, goldens: dict[str, Any], name: str
) -> None:
    modality = "vision" if name == "film" else name
    x = torch.from_numpy(inputs.tower_inputs()[name])
    with torch.inference_mode():
        found = tiny({modality: x})[modality]
    assert relative_error(found, goldens[f"tower.{name}"]) <= 1e-4


def test_the_full_model_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        model = ImageBind()
    lines = sorted(f"{name} {shape}" for name, shape in shapes(model).items())
    assert sum(p.numel() for p in model.parameters()) == FACTS["parameters"]
    assert round(FACTS["parameters"] / 1e6, 1) == 1200.8
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
    assert (len(lines), digest) == (FACTS["tensors"], FACTS["digest"])


def test_text_is_read_to_its_end_alone(tiny: ImageBind) -> None:
    token_BL = torch.from_numpy(inputs.tower_inputs()["text"])[:2]
    with torch.inference_mode():
        whole, short = tiny({"text": token_BL}), tiny({"text": token_BL[:, :9]})
    torch.testing.assert_close(whole["text"], short["text"], atol=1e-6, rtol=0)


def test_wrong_sizes_are_refused_with_both_values(tiny: ImageBind) -> None:
    with pytest.raises(ConfigError, match=r"\(3, 2, 100, 100\).*\(3, 2, 224, 224\)"):
        tiny({"vision": torch.zeros(1, 3, 100, 100)})
    with pytest.raises(ConfigError, match=r"text_embed_dim is 30.*text_num_heads, 4"):
        ImageBindConfig(**{**inputs.TINY, "text_embed_dim": 30})
    with pytest.raises(ConfigError, match="no tower for smell"):
        ImageBind(ImageBindConfig(**inputs.TINY), ["smell"])


def test_a_model_without_a_tower_says_so(weights: Path) -> None:
    model = load_towers(weights, ["text"])
    assert list(model.modality_trunks) == ["text"]
    with pytest.raises(ConfigError, match="vision tower is not loaded, but text"):
        model({"vision": torch.zeros(1, 3, 224, 224)})


def test_stochastic_depth_acts_in_training_alone() -> None:
    config = ImageBindConfig(**{**inputs.TINY, "audio_drop_path": 0.9})
    model = ImageBind(config, ["audio"])
    x = torch.from_numpy(inputs.tower_inputs()["audio"])
    model.eval()
    torch.testing.assert_close(model({"audio": x}), model({"audio": x}))
    model.train()
    torch.manual_seed(0)
    passes = [model({"audio": x})["audio"] for _ in range(4)]
    assert any(not torch.equal(passes[0], other) for other in passes[1:])


@pytest.mark.parametrize("name", ["wide", "tall", "small"])
def test_images_are_prepared_as_by_the_reference(goldens: dict[str, Any], name: str) -> None:
    from cart_qdrant.embedders.imagebind.preprocess import image_tensor

    size = {"wide": (301, 452), "tall": (517, 300), "small": (97, 131)}[name]
    found = image_tensor(inputs.frame(name, *size))
    assert found.shape == (3, 224, 224)
    np.testing.assert_allclose(found[:, ::8, ::8], goldens[f"picture.{name}"], atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("wide", (181, 320)), ("tall", (320, 243))])
def test_videos_are_prepared_as_by_the_reference(
    goldens: dict[str, Any], name: str, size: tuple[int, int]
) -> None:
    from cart_qdrant.embedders.imagebind.preprocess import video_clips

    found = video_clips([inputs.frame(f"{name} {n}", *size) for n in range(4)])
    assert found.shape == (6, 3, 2, 224, 224)
    np.testing.assert_allclose(found[..., ::16, ::16], goldens[f"film.{name}"], atol=1e-4)
    middle = video_clips([inputs.frame(f"{name} {n}", *size) for n in range(3)], crops=1)
    assert middle.shape == (2, 3, 2, 224, 224)
    torch.testing.assert_close(middle[0], found[1])
    torch.testing.assert_close(middle[1][:, 0], middle[1][:, 1])  # the odd frame, with itself


@pytest.mark.parametrize(("name", "seconds"), [("long", 7.3), ("short", 0.7)])
def test_sound_is_prepared_as_by_the_reference(
    goldens: dict[str, Any], name: str, seconds: float
) -> None:
    pytest.importorskip("transformers", reason=imagebind_files.EXTRA)
    from cart_qdrant.embedders.imagebind.preprocess import spectrograms

    found = spectrograms(inputs.sound(seconds))
    assert found.shape == (3, 1, 128, 204)
    np.testing.assert_allclose(found[..., ::4, ::6], goldens[f"mel.{name}"], atol=1e-3)


@needs_extra
def test_text_is_cut_into_the_reference_tokens() -> None:
    from cart_qdrant.embedders.imagebind.preprocess import tokens

    assert tokens(inputs.TEXTS).tolist() == FACTS["tokens"]
    # The names of CLIP's special tokens are words like others: a text ends where it ends.
    assert tokens(["a <|endoftext|> b"])[0].tolist().count(49_407) == 1


def clip(modality: Modality, **content: Any) -> Clip:
    return Clip(modality, key="x", **content)


@needs_extra
def test_the_embedder_loads_each_tower_when_it_is_needed(weights: Path) -> None:
    embedder = ImageBindEmbedder(weights, options=ComputeOptions(device="cpu", dtype="float32"))
    assert embedder.dim == 16
    text = embedder.embed_text(["a dog", "a cat on a mat"])
    assert set(embedder._towers) == {"text"}
    clips = [
        clip(Modality.IMAGE, frames=(inputs.frame("wide", 301, 452),)),
        clip(Modality.AUDIO, samples=inputs.sound(3), rate=16_000),
        clip(Modality.VIDEO, frames=tuple(inputs.frame(str(n), 181, 320) for n in range(4))),
    ]
    together = embedder.embed_media(clips)
    assert set(embedder._towers) == {"text", "vision", "audio"}
    for x in (text, together):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.embed_media([one]) for one in clips])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert embedder.embed_text([]).shape == (0, 16)
    short = ComputeOptions(device="cpu", dtype="bfloat16")
    half = ImageBindEmbedder(weights, options=short).embed_media(clips)
    assert float((half * together).sum(axis=1).min()) > 0.98


def test_other_checkpoints_are_refused_and_nothing_is_touched(
    checkpoint: Path, tmp_path: Path, weights: Path
) -> None:
    folder = tmp_path / "imagebind"
    with pytest.raises(MismatchError, match=r"other parts than ImageBind.*, not \("):
        convert(checkpoint, folder)  # tiny, where the full model is wanted
    missing = torch.load(checkpoint, weights_only=True)
    missing.pop("modality_heads.text.proj.1.weight")
    torch.save(missing, tmp_path / "missing.pth")
    with pytest.raises(MismatchError, match=r"proj\.1\.weight: no such tensor"):
        convert(tmp_path / "missing.pth", folder, config=ImageBindConfig(**inputs.TINY))
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"a": [1]}, tmp_path / "list.pth")
    for name, reason in {"text.pth": "read safely", "list.pth": "no state dict"}.items():
        with pytest.raises(MismatchError, match=reason):
            convert(tmp_path / name, folder, config=ImageBindConfig(**inputs.TINY))
    assert not folder.exists()
    before = (weights / "text.safetensors").read_bytes()
    with pytest.raises(MismatchError):
        convert(tmp_path / "text.pth", weights)
    assert loadable(weights)
    assert (weights / "text.safetensors").read_bytes() == before


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"a": Path("x")}, path)
    with pytest.raises(MismatchError, match="read safely"):
        convert(path, tmp_path / "imagebind")


def test_a_damaged_tower_is_named(weights: Path, tmp_path: Path) -> None:
    for name in ("config.json", "text.safetensors", "vision.safetensors", "audio.safetensors"):
        (tmp_path / name).write_bytes((weights / name).read_bytes())
    assert installed(tmp_path)
    assert loadable(tmp_path)
    (tmp_path / "text.safetensors").write_bytes(b"\0" * 100)
    assert not loadable(tmp_path)
    with pytest.raises(MismatchError, match=r"text\.safetensors cannot be read"):
        load_towers(tmp_path, ["text"])
    (tmp_path / "text.safetensors").write_bytes((tmp_path / "audio.safetensors").read_bytes())
    with pytest.raises(MismatchError, match=r"not those of their config\.json"):
        load_towers(tmp_path, ["text"])
    for damaged in ("", "[]", '{"sizes": {}, "checkpoint": "x"}'):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(MismatchError, match=r"config\.json"):
            load_towers(tmp_path, ["text"])


@needs_extra
def test_other_weights_are_another_version(tiny: ImageBind, weights: Path, tmp_path: Path) -> None:
    state = {**tiny.state_dict()}
    state["modality_heads.text.proj.1.weight"] = torch.zeros(16, 32)
    torch.save(state, tmp_path / "other.pth")
    convert(tmp_path / "other.pth", tmp_path / "other", config=ImageBindConfig(**inputs.TINY))
    assert ImageBindEmbedder(tmp_path / "other").version != ImageBindEmbedder(weights).version


def test_what_text_and_sound_need_is_asked_for_at_once(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagebind_files, "PACKAGES", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"no_such_package.*cart-qdrant\[imagebind\]"):
        ImageBindEmbedder(weights)
    monkeypatch.setenv("CARTQ_MODELS", str(weights.parent))
    if lite_available():
        assert open_embedder("auto").name == "lite"


@needs_extra
def test_without_weights_the_command_that_gets_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARTQ_MODELS", str(tmp_path))
    with pytest.raises(MissingExtraError, match="cartq models pull imagebind"):
        open_embedder("imagebind")


@needs_extra
def test_auto_takes_imagebind_where_its_weights_are(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARTQ_MODELS", str(weights.parent))
    said: list[str] = []
    assert open_embedder("auto", say=said.append).name == "imagebind"
    assert said == ["embedder: imagebind (its weights are here)"]
    assert set(MODALITIES) > {"text", "vision", "audio"}
