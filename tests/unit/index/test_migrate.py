"""Moving a collection keeps its payload indexes, each of its kind."""

from __future__ import annotations

from pathlib import Path

from cart_qdrant.index.migrate import copy_indexes
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec


def test_indexes_are_copied_with_their_kinds(tmp_path: Path) -> None:
    source, target = EdgeStore(tmp_path / "a" / "store"), EdgeStore(tmp_path / "b" / "store")
    spec = CollectionSpec(vectors={MEDIA: 4}, keywords=("path",), texts=("captions[].text",))
    for store in (source, target):
        store.create(spec)
    source.create_keyword_index("place")
    source.create_range_index("year", "float")
    source.create_range_index("taken", "datetime")
    copy_indexes(source, target)
    wanted = {
        "path": "keyword", "captions[].text": "text", "place": "keyword", "year": "float",
        "taken": "datetime",
    }  # fmt: skip
    assert target.info().indexes == source.info().indexes == wanted
    for store in (source, target):
        store.close()
