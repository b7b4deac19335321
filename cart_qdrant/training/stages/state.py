"""What the stages of a training hand on: each returns a frozen record that the next ones read.

Shape legend: P pairs, N items, D vector width, W caption vector width, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cart_qdrant.arrays.types import FloatArray, IntArray, MaskArray
from cart_qdrant.compute import Compute
from cart_qdrant.embedders.zero_shot import TextAnchors
from cart_qdrant.generator.network import Generator
from cart_qdrant.identifiers.hubness import QueryBank
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import IdentifierInfo
from cart_qdrant.progress import Reporter
from cart_qdrant.training.checkpoint import Resumable
from cart_qdrant.training.corpus import Corpus
from cart_qdrant.training.generator_data import GeneratorData
from cart_qdrant.training.options import TrainOptions
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.query_vectors import QueryVectors
from cart_qdrant.training.split import Split
from cart_qdrant.training.text_states import TextStates


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what it works on, and where it reports.

    Attributes:
        compute: Device and number format of the training.
        history: One row an epoch; grows while the run goes on.
    """

    index: Index
    options: TrainOptions
    reporter: Reporter
    compute: Compute
    history: list[dict[str, float | str]] = field(default_factory=list)

    @property
    def work(self) -> Path:
        """Folder of the checkpoints."""
        return self.index.folder.work / "train"

    def log(self, row: Mapping[str, float | str]) -> None:
        """Keep and show the row of one epoch."""
        self.history.append(dict(row))
        self.reporter.say(" ".join(f"{name}={value}" for name, value in row.items()))

    def resumable(self, name: str, fingerprint: str) -> Resumable:
        """The checkpoint of one network's training."""
        path = self.work / f"{name}.safetensors"
        return Resumable(path, fingerprint, self.reporter, self.log)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What all stages learn from.

    Attributes:
        encoder: The query encoder, which the tower stage trains in place.
        states: The corpus's texts, as the encoder reads them.
        spaces: Media spaces that have an item with a text.
        text_anchors: Texts with the embedder's own vectors; None where the embedder has none.
        zero_shot: Share of the embedder's own text vectors in a query vector, where too few queries
            are held out to choose it.
        fingerprint: Of data, options and networks; a checkpoint of another one is not resumed.
        remarks: Sentences about the data, for the report.
    """

    corpus: Corpus
    split: Split
    encoder: QueryEncoder
    states: TextStates
    spaces: list[str]
    text_anchors: TextAnchors | None
    zero_shot: float
    fingerprint: str
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class TrainedTower:
    """Result of the tower stage.

    Attributes:
        graph: The trained encoder's ONNX graph, which searches run.
        queries: Query vectors of the corpus's texts, by that graph.
        query_PD: Query vector of each pair in its item's space.
        scale: Learned factor of the cosines in the media spaces.
        val_r10: Best R@10 of held-out items, by which the epoch was chosen.
    """

    graph: bytes
    queries: QueryVectors
    query_PD: FloatArray
    scale: float
    val_r10: float


@dataclass(frozen=True, slots=True)
class StoredCaptions:
    """Result of the captions stage.

    Attributes:
        vector: Vector of the points that holds their captions once the training is in force.
        tuned: Whether the trained query encoder made them; else they are sentence vectors.
        text_PW: Vector of each pair's text, as it is stored.
    """

    vector: str
    tuned: bool
    text_PW: FloatArray


@dataclass(frozen=True, slots=True)
class FittedIdentifiers:
    """Result of the identifiers stage: what is stored beside the identifiers in force, and the
    view of it without held-out captions, of which the later stages learn.

    Attributes:
        info: What the manifest says of the stored identifiers once they are in force.
        codec: Their codebooks.
        trie: Tree of the view.
        bank: Queries that hubness is measured by.
        name_N: Identifier space of each item in the view.
        rows_NL: Identifier of each item in the view, with the disambiguation token.
        hub_N: Hubness of each media vector; NaN where there is none.
        caption_NW: Caption vectors in the view; zero where an item has none.
        captioned_N: Whether an item has a caption vector in the view.
        caption_hub_N: Hubness of each of these caption vectors; NaN where there is none.
    """

    info: IdentifierInfo
    codec: Codec
    trie: Trie
    bank: QueryBank
    name_N: npt.NDArray[np.str_]
    rows_NL: IntArray
    hub_N: FloatArray
    caption_NW: FloatArray
    captioned_N: MaskArray
    caption_hub_N: FloatArray


@dataclass(frozen=True, slots=True)
class TrainedGenerator:
    """Result of the generator stage: the network, and the data that it was trained on."""

    network: Generator
    data: GeneratorData
