"""A trained model in torch, on disk and in memory: encoder, generator, calibration, modality prior.

A search loads `search.trained_model.TrainedModel` instead, which needs no torch.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cart_qdrant.compute import Compute
from cart_qdrant.embedders.text.minilm import TextEncoder
from cart_qdrant.embedders.text.tokenizer import TOKENIZER
from cart_qdrant.files import disk_errors
from cart_qdrant.generator.artifacts import (
    CALIBRATION,
    CONFIG,
    GENERATOR,
    MODALITY_PRIOR,
    QUERY_GRAPH,
    TOWER,
    readable,
)
from cart_qdrant.generator.network import Generator, load_generator
from cart_qdrant.identifiers.hubness import QueryBank
from cart_qdrant.index.models import QUERY_BANK
from cart_qdrant.search.fusion import Calibration
from cart_qdrant.search.modality_prior import ModalityPrior
from cart_qdrant.training.query_encoder import QueryEncoder


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that turns a text into vectors and identifiers.

    Attributes:
        graph: The encoder's ONNX graph, which searches run.
    """

    encoder: QueryEncoder
    graph: bytes
    generator: Generator
    calibration: Calibration
    modality_prior: ModalityPrior

    def save(self, folder: Path, bank: QueryBank) -> None:
        """Write safetensors and JSON into a new folder, with the queries that hubness in the index
        is measured by."""
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with disk_errors(folder):
            self._save(folder, bank)

    def _save(self, folder: Path, bank: QueryBank) -> None:
        save_file(_state(self.encoder), folder / TOWER)
        save_file(_state(self.generator), folder / GENERATOR)
        (folder / QUERY_GRAPH).write_bytes(self.graph)
        # A search needs no more of the text encoder than this.
        self.encoder.tokenizer.save(str(folder / TOKENIZER))
        spaces = {
            space: head.skip.out_features  # type: ignore[union-attr]
            for space, head in self.encoder.heads.items()
        }
        config = {"spaces": spaces, "generator": self.generator.config.to_json()}
        (folder / CONFIG).write_text(json.dumps(config, indent=2))
        (folder / CALIBRATION).write_text(json.dumps(self.calibration.to_json(), indent=2))
        self.modality_prior.save(folder / MODALITY_PRIOR)
        bank.save(folder / QUERY_BANK)

    @classmethod
    def load(cls, folder: Path, text: TextEncoder, compute: Compute | None = None) -> Model:
        """Inverse of `save`.

        Args:
            folder: What `save` wrote.
            text: The text encoder.
            compute: Where, and in which number format, it will compute.

        Raises:
            MismatchError: It was written by a version with other parts.
        """
        with readable(folder):
            config = json.loads((folder / CONFIG).read_text())
            with torch.random.fork_rng(devices=[]):  # its first weights are drawn
                encoder = QueryEncoder(text, config["spaces"], compute)
            encoder.load_state_dict(load_file(folder / TOWER))
            generator = load_generator(folder / GENERATOR, config["generator"], compute)
            calibration = Calibration.from_json(json.loads((folder / CALIBRATION).read_text()))
            modality_prior = ModalityPrior.load(folder / MODALITY_PRIOR)
            graph = (folder / QUERY_GRAPH).read_bytes()
        encoder.eval().requires_grad_(False)
        return cls(encoder, graph, generator, calibration, modality_prior)


@torch.inference_mode()
def parameters(model: Model) -> int:
    """Trained parameters."""
    modules = (model.encoder, model.generator)
    return sum(p.numel() for module in modules for p in module.parameters())
