"""What a search keeps of an index while it is open: tree, codec, trained model, weights.

Shape legend: B texts, W caption vector width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.errors import MismatchError
from cart_qdrant.generator.decode import IdentifierDecoder, beams_for
from cart_qdrant.generator.prior import HUB, NodeBonus
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.collection import TEXT_DIM
from cart_qdrant.index.identifier_files import load_codec, load_trie
from cart_qdrant.index.index import Index
from cart_qdrant.search.filters import has_caption
from cart_qdrant.search.fusion import Calibration, untrained
from cart_qdrant.search.modality_prior import ModalityPrior
from cart_qdrant.search.trained_model import TrainedModel

if TYPE_CHECKING:
    from cart_qdrant.generator.network import Generator


@dataclass(frozen=True, slots=True)
class LoadedIndex:
    """An index with all that its searches read.

    Attributes:
        index: The index.
        trie: All identifiers; None before the first fit.
        codec: Their code vectors; None before the first fit.
        model: The trained model; None before training.
        calibration: Weights in force.
        modality_prior: Which modalities a query is likely for.
        decoder: Decodes texts; None before the first fit.
    """

    index: Index
    trie: Trie | None
    codec: Codec | None
    model: TrainedModel | None
    calibration: Calibration
    modality_prior: ModalityPrior
    decoder: IdentifierDecoder | None

    @classmethod
    def load(cls, index: Index, previous: LoadedIndex | None = None) -> LoadedIndex:
        """Load what searches read.

        Args:
            index: Open index.
            previous: An earlier version, whose model is taken over where it is in force still.

        Raises:
            MismatchError: Parts of the index are of different versions.
        """
        manifest = index.manifest
        trie, codec = load_trie(index), load_codec(index, mapped=True)
        if previous is not None and previous.index.manifest.generator == manifest.generator:
            model = previous.model
        else:
            model = _load_model(index)
        if model is not None:
            calibration, modality_prior = model.calibration, model.modality_prior
        else:
            spaces = manifest.embedder.spaces
            calibration = untrained(
                sorted(set(spaces.values())),
                manifest.identifiers.levels if manifest.identifiers else 0,
                captions=index.store.count(has_caption(index)) > 0,
            )
            modality_prior = ModalityPrior.single(list(spaces), TEXT_DIM)
        decoder = None
        if trie is not None and codec is not None:
            decoder = _decoder(trie, codec, calibration, model)
        return cls(index, trie, codec, model, calibration, modality_prior, decoder)

    def caption_vectors(self, texts: Sequence[str]) -> FloatArray:
        """Vectors (B, W) of texts (B of them) as those of captions are stored."""
        if self.model is None:
            return self.index.query_caption_encoder().embed(texts)
        found = self.model.encode(texts)
        return found.text_BW if self.index.manifest.captions.encoder is None else found.caption_BW

    @property
    def reads_beams(self) -> bool:
        """Whether the answers of `auto` and `fused` depend on beams."""
        return self.model is not None and self.calibration.reads_beams()


def _load_model(index: Index) -> TrainedModel | None:
    info, identifiers = index.manifest.generator, index.manifest.identifiers
    if info is None:
        return None
    if identifiers is None or info.identifiers != identifiers.version:
        raise MismatchError(
            f"The generator writes identifiers {info.identifiers}, but the index has "
            f"{None if identifiers is None else identifiers.version}.",
            "Train again: `cartq train`.",
        )
    return TrainedModel(index.folder.path(info.folder))


def _decoder(
    trie: Trie, codec: Codec, calibration: Calibration, model: TrainedModel | None
) -> IdentifierDecoder:
    def generator() -> Generator:
        assert model is not None
        return model.generator

    return IdentifierDecoder(
        trie=trie,
        codec=codec,
        scale=calibration.scale,
        width=beams_for(calibration.beams, len(trie)),
        gates=calibration.gates,
        generator=None if model is None else generator,
        node_bonus=None if model is None else NodeBonus(trie, calibration.scale * HUB),
    )
