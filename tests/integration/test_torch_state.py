"""A program that ingests and trains finds its settings of torch and its random numbers again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cart_qdrant import compute
from cart_qdrant.embedders.registry import lite_available, open_embedder
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions
from tests.conftest import short_training

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif(
    not lite_available(), reason='not installed: pip install "cart-qdrant[lite]"'
)


def settings() -> dict[str, Any]:
    """Everything global that code with torch is used to change."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return {
        "threads": torch.get_num_threads(),
        "threads between operators": torch.get_num_interop_threads(),
        "default format": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d))
                     for d in ("cpu", "cuda", "mps")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "tf32": cuda.matmul.allow_tf32,
        "attention": (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
                      cuda.math_sdp_enabled()),
        "onednn": torch.backends.mkldnn.enabled,
        "denormals": float(torch.tensor([1e-40]) * 1.0) > 0,
        "random numbers": torch.get_rng_state().tolist(),
        "those of numpy": repr(np.random.get_state()),
        "those of Python": random.getstate(),
    }  # fmt: skip


def test_ingestion_and_training_leave_torch_as_it_is(
    small_media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cart_qdrant.training.train import train
    from cart_qdrant.training.trained_model import Model

    monkeypatch.setattr(compute, "_chosen", {})  # formats are measured, too
    seeded: list[str] = []
    for name in ("cuda", "mps"):  # torch seeds them with the CPU, also before they are used
        monkeypatch.setattr(getattr(torch, name), "manual_seed", lambda _, n=name: seeded.append(n))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: seeded.append("all of cuda"))
    with torch.no_grad():  # as a program that only searches otherwise
        before = settings()
        with Index.create(tmp_path / ".cartq", open_embedder("lite")) as index, index.folder.lock():
            Ingest(index, IngestOptions(paths=[small_media])).run()
            train(index, short_training())
            generator = index.manifest.generator
            assert generator is not None
            Model.load(index.folder.path(generator.folder), index.text_encoder())
        after = settings()
    assert [name for name in before if before[name] != after[name]] == []
    assert seeded == []
