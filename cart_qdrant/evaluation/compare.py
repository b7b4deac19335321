"""Comparison of embedders and of segment lengths on the user's own media and queries.

The media are ingested into a temporary index for each setup.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cart_qdrant.config import SegmentConfig
from cart_qdrant.embedders.registry import open_embedder
from cart_qdrant.errors import MediaError
from cart_qdrant.evaluation.evaluate import EvalQuery, LaneScore, evaluate
from cart_qdrant.index.consent import media_folder
from cart_qdrant.index.index import Index
from cart_qdrant.index.ingest import Ingest
from cart_qdrant.index.report import IngestOptions
from cart_qdrant.progress import Reporter, Silent
from cart_qdrant.search.lanes import Lane
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.training.options import TrainOptions
from cart_qdrant.training.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to make an index: an embedder and a length of segments.

    Attributes:
        embedder: Its name, as `--embedder` takes it.
        seconds: Length of a segment of video or audio, at most; None takes the defaults.
    """

    embedder: str
    seconds: float | None = None

    def segments(self) -> SegmentConfig:
        """Lengths of the segments that files are cut into."""
        config = SegmentConfig()
        if self.seconds is None:
            return config
        shortest = min(config.min_shot, self.seconds)
        return replace(
            config, max_shot=self.seconds, min_shot=shortest, audio_window=self.seconds,
            min_audio=min(config.min_audio, self.seconds),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sizes, times and scores of one setup.

    Attributes:
        dim: Width of the media vectors.
        segments: Number of items in the index.
        failed: Number of files that could not be ingested.
        ingest_seconds: Time of the ingestion.
        embed_seconds: Time within the embedder, as a part of it.
        scores: Recall and latency of each lane.
    """

    setup: Setup
    dim: int
    segments: int
    failed: int
    ingest_seconds: float
    embed_seconds: float
    scores: Sequence[LaneScore]

    def to_json(self) -> dict[str, Any]:
        """The `--json` contract."""
        return {
            "embedder": self.setup.embedder,
            "seconds": self.setup.seconds,
            "dim": self.dim,
            "segments": self.segments,
            "failed": self.failed,
            "ingest_seconds": round(self.ingest_seconds, 2),
            "embed_seconds": round(self.embed_seconds, 2),
            "lanes": [score.to_json() for score in self.scores],
        }


def stored_files(index: Index) -> list[Path]:
    """Paths of an index's files that still exist and may be opened."""
    names = {
        str((record.payload or {}).get("path"))
        for record in index.store.scroll(with_payload=["path"])
    }
    media = media_folder(index.folder, index.manifest.id)
    found: list[Path] = []
    for name in sorted(names):
        try:
            media.file(name)
        except MediaError as error:
            log.warning("%r is left out: %s", name, error)
        else:  # by its own name: captions lie beside a link, not beside its target
            found.append(media.base / name)
    return [path for path in found if path.exists()]


def compare(
    files: Sequence[Path],
    queries: Sequence[EvalQuery],
    setups: Sequence[Setup],
    *,
    lanes: Sequence[Lane] = ("dense", "auto"),
    ks: Sequence[int] = (1, 5, 10),
    profile: str | None = None,
    filter: qdrant.AnyFilter | None = None,
    reporter: Reporter | None = None,
) -> Iterator[Comparison]:
    """Ingest the files and ask the queries once for each setup; results come as they are done.

    Args:
        files: Media files; captions are read from where they lie.
        profile: Training profile; None compares untrained indexes.

    Raises:
        UsageError: There is no such embedder.
    """
    reporter = reporter or Silent()
    for setup in setups:
        with tempfile.TemporaryDirectory(prefix="cartq-compare-") as folder:
            root = Path(folder) / ".cartq"
            embedder = open_embedder(setup.embedder, say=reporter.say)
            reporter.say(f"{setup.embedder}: {len(files)} files")
            with Index.create(root, embedder) as index, index.folder.lock():
                options = IngestOptions(paths=list(files), segments=setup.segments())
                report = Ingest(index, options, reporter).run()
                if profile is not None:
                    train(index, TrainOptions(profile=profile), reporter)
            with Retriever.open(root) as retriever:
                scores = evaluate(
                    retriever, queries, lanes=lanes, ks=ks, filter=filter, reporter=reporter
                )
            yield Comparison(
                setup, embedder.dim, report.segments, len(report.failed), report.seconds,
                report.embed_seconds, scores,
            )  # fmt: skip
