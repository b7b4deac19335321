"""Find video moments, sounds and images by text: generative retrieval with dense rerank on Qdrant.

The rooms, in the order in which data flows (CONTRIBUTING.md has them all):

- `index/`: media -> segments -> vectors and captions -> identifiers -> Qdrant points
- `training/`: captions -> pairs -> query tower and generator -> calibration
- `search/`: query -> beams -> payload filter and dense lanes -> hits
- leaves: `config`, `errors`, `extras`, `files`, `progress`, `records`

Importing this package imports none of torch, PyAV, Pillow or Qdrant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cart_qdrant.errors import CartError
from cart_qdrant.records import Caption, Hit, Identifier, Modality, Segment

if TYPE_CHECKING:
    from cart_qdrant.search.query import Part, Query
    from cart_qdrant.search.retriever import Retriever

__version__ = "0.1.0"
__all__ = [
    "Caption",
    "CartError",
    "Hit",
    "Identifier",
    "Modality",
    "Part",
    "Query",
    "Retriever",
    "Segment",
]

# Heavy: imported on first use.
_LATER = {
    "Part": "cart_qdrant.search.query",
    "Query": "cart_qdrant.search.query",
    "Retriever": "cart_qdrant.search.retriever",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
