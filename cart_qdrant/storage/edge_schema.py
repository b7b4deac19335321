"""The schema of an embedded collection: how it is made, and the file beside it that describes it.

The engine's files are in the folder `PATH`; `PATH.json` beside it holds the `CollectionSpec`. A
collection is made under a temporary name and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from cart_qdrant.errors import StoreError
from cart_qdrant.files import rename_durably, write_atomic
from cart_qdrant.storage.edge_engine import EdgeEngine
from cart_qdrant.storage.protocol import CollectionSpec
from cart_qdrant.storage.validation import QUANTILE

log = logging.getLogger(__name__)
ON_DISK = edge.Memory.Cold
"""Payload indexes and int8 vectors are read where they lie: loading them would be most of the time
of opening."""


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Parameters of each vector of a collection, from the engine's own file."""
    vectors: dict[str, dict[str, Any]] = json.loads((path / "edge_config.json").read_text())[
        "vectors"
    ]
    return vectors


class EdgeSchema:
    """The spec of an embedded collection, read once.

    Args:
        engine: The engine on the collection's folder.
        sidecar: Whether to keep the file beside the folder; without it, the engine is asked for
            the spec at each opening.
    """

    def __init__(self, engine: EdgeEngine, *, sidecar: bool) -> None:
        self._engine = engine
        path = engine.path
        self._sidecar = path.with_name(f"{path.name}.json") if sidecar else None
        self._drafts = path.with_name("work")
        self._spec: CollectionSpec | None = None

    def make(self, vectors: Mapping[str, int]) -> None:
        """Make the collection without payload indexes; other files in its folder are kept aside."""
        path = self._engine.path
        draft = self._drafts / f"{path.name}.creating"
        shutil.rmtree(draft, ignore_errors=True)  # left by a crash
        if path.exists() and any(path.iterdir()):
            aside = path.with_name(f"{path.name}.broken-{os.urandom(4).hex()}")
            path.rename(aside)
            log.warning("%s held no collection; moved to %s.", path, aside)
        draft.mkdir(parents=True)
        # Graphs are built on and walked by int8; hits are scored by the vectors themselves.
        int8 = edge.ScalarQuantizationConfig(
            edge.ScalarType.Int8, quantile=QUANTILE, memory=ON_DISK
        )
        config = edge.EdgeConfig(
            vectors={
                name: edge.EdgeVectorParams(size, edge.Distance.Cosine, quantization_config=int8)
                for name, size in vectors.items()
            }
        )
        shard = edge.EdgeShard.create(str(draft), config)
        shard.flush()
        shard.close()
        self.write(CollectionSpec(vectors=dict(vectors)))
        rename_durably(draft, path)

    def write(self, spec: CollectionSpec) -> None:
        """Take over another spec, and write it beside the folder."""
        self._spec = spec
        if self._sidecar is None:
            return
        content = {
            "vectors": dict(spec.vectors),
            "keywords": list(spec.keywords),
            "texts": list(spec.texts),
        }
        write_atomic(self._sidecar, json.dumps(content).encode(), self._drafts)

    def read(self) -> CollectionSpec:
        """The spec of the collection, which is opened.

        Raises:
            StoreError: The collection cannot be opened, or the file beside it cannot be read.
        """
        self._engine.open()
        if self._spec is None:
            self._spec = self._recover() if self._sidecar is None else self._read(self._sidecar)
        return self._spec

    def _read(self, sidecar: Path) -> CollectionSpec:
        if not sidecar.is_file():
            log.warning("%s is missing; made again from the store.", sidecar)
            self.write(self._recover())
        try:
            data = json.loads(sidecar.read_text())
            return CollectionSpec(
                vectors={str(name): int(size) for name, size in data["vectors"].items()},
                keywords=tuple(data["keywords"]),
                texts=tuple(data["texts"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise StoreError(
                f"{sidecar} cannot be read ({error!r}).",
                "Delete that file: it is made again from the store.",
            ) from error

    def _recover(self) -> CollectionSpec:
        with self._engine.use() as shard:
            vectors = read_config(self._engine.path)
            kinds = {field: index.data_type for field, index in shard.info().payload_schema.items()}
        types = edge.PayloadSchemaType
        return CollectionSpec(
            vectors={name: vector["size"] for name, vector in vectors.items()},
            keywords=tuple(field for field, kind in kinds.items() if kind == types.Keyword),
            texts=tuple(field for field, kind in kinds.items() if kind == types.Text),
        )
