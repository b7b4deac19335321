"""Makes `imagebind.safetensors`, `imagebind.json`: what the reference implementation gives.

    pip download --no-deps imagebind-unofficial torchvision torchaudio pytorchvideo -d wheels
    (unpack them and ftfy, regex, einops, iopath, portalocker, wcwidth into one folder)
    python tests/goldens/make_imagebind.py FOLDER

The reference imports under no current torch: what of its dependencies does no arithmetic here is
replaced by nothing. Needs cart-qdrant's own torch and Pillow alone beside FOLDER.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent


def stub(name: str, **content: Any) -> types.ModuleType:
    """A module that holds what is given."""
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module
    return module


def load(name: str, path: Path) -> types.ModuleType:
    """One file as a module, without its package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Through(torch.nn.Module):
    """Stochastic depth in eval mode."""

    def __init__(self, _rate: float = 0.0) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The input."""
        return x


def main() -> None:
    """Write both files beside this one."""
    root = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(root))
    stub("timm")
    stub("timm.layers", DropPath=Through, trunc_normal_=torch.nn.init.trunc_normal_)
    stub("imagebind").__path__ = [str(root / "imagebind")]
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = towers(arrays)
    preprocessing(root, arrays, facts)
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    save_file(arrays, HERE / "imagebind.safetensors")
    (HERE / "imagebind.json").write_text(json.dumps(facts, indent=1) + "\n")


@torch.inference_mode()
def towers(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Vectors of every tower of a tiny model; names and shapes of the full one."""
    from imagebind.models.imagebind_model import ImageBindModel, imagebind_huge

    model = ImageBindModel(**inputs.TINY).eval()
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    made = {name: torch.from_numpy(x) for name, x in inputs.weights(shapes).items()}
    model.load_state_dict({**model.state_dict(), **made})
    for name, x in inputs.tower_inputs().items():
        modality = "vision" if name == "film" else name
        arrays[f"tower.{name}"] = model({modality: torch.from_numpy(x)})[modality].numpy()
    huge = imagebind_huge(pretrained=False)  # 5 GB; it cannot be made on the meta device
    lines = sorted(f"{name} {tuple(x.shape)}" for name, x in huge.state_dict().items())
    return {
        "parameters": sum(p.numel() for p in huge.parameters()),
        "tensors": len(lines),
        "digest": hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest(),
    }


def preprocessing(root: Path, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Pictures, films, sound and text as the reference prepares them; every so many numbers."""
    from imagebind.models.multimodal_preprocessors import SimpleTokenizer

    words = SimpleTokenizer(str(root / "imagebind/bpe/bpe_simple_vocab_16e6.txt.gz"))
    facts["tokens"] = [words(text).tolist() for text in inputs.TEXTS]

    # Registers what torchvision asks torch for at import.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import transforms

    stub("torchaudio")
    sys.modules["torchaudio"].compliance = types.SimpleNamespace(
        kaldi=load("kaldi", root / "torchaudio/compliance/kaldi.py")
    )
    stub("pytorchvideo"), stub("pytorchvideo.data")
    stub("pytorchvideo.transforms")
    stub("pytorchvideo.data.clip_sampling", ConstantClipsPerVideoSampler=None)
    stub("pytorchvideo.data.encoded_video", EncodedVideo=None)
    sys.modules["pytorchvideo"].transforms = sys.modules["pytorchvideo.transforms"]
    stub("pkg_resources")
    data = load("imagebind.data", root / "imagebind/data.py")
    functional = load("functional", root / "pytorchvideo/transforms/functional.py")

    normalize = transforms.Normalize(
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    )
    still = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224), transforms.ToTensor(), normalize,
        ]
    )  # fmt: skip
    for name, size in {"wide": (301, 452), "tall": (517, 300), "small": (97, 131)}.items():
        x = still(Image.fromarray(inputs.frame(name, *size)))
        arrays[f"picture.{name}"] = x[:, ::8, ::8].numpy()

    for name, size in {"wide": (181, 320), "tall": (320, 243)}.items():
        frames = np.stack([inputs.frame(f"{name} {n}", *size) for n in range(4)])
        x = torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255  # (C, T, H, W)
        pairs = [functional.short_side_scale(part, 224) for part in (x[:, :2], x[:, 2:])]
        mean = torch.tensor(normalize.mean)[:, None, None, None]
        std = torch.tensor(normalize.std)[:, None, None, None]
        cut = data.SpatialCrop(224, num_crops=3)([(part - mean) / std for part in pairs])
        arrays[f"film.{name}"] = torch.stack(cut)[..., ::16, ::16].numpy()

    for name, seconds in {"long": 7.3, "short": 0.7}.items():
        wave = torch.from_numpy(inputs.sound(seconds))[None]
        spare = max(seconds - 2.0, 0.0)
        clips = [
            # A copy: the reference takes the mean away in place.
            wave[:, int(start * 16_000) : int((start + 2.0) * 16_000)].clone()
            for start in (0.0, spare / 2, spare)
        ]
        mel = torch.stack([data.waveform2melspec(clip, 16_000, 128, 204) for clip in clips])
        arrays[f"mel.{name}"] = ((mel + 4.268) / 9.138)[..., ::4, ::6].numpy()


if __name__ == "__main__":
    main()
