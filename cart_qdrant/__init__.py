"""Search for video, audio and images by text: generative and dense retrieval on Qdrant.

The rooms of the package, in the order of their imports (a room imports only those after it):

- `evaluation/`: recall, latency, ablations and comparisons
- `training/`: captions to a trained generator and its calibration
- `search/`: a query to hits
- `index/`: an index on disk and in its store
- `generator/`: decodes identifiers for a query
- `captions/`: captions of items, from tables, sidecar files, subtitles and models
- `embedders/`: media and text to vectors
- `media/`: files to segments
- `identifiers/`: vectors to identifiers, and the prefix tree of all identifiers
- `storage/`: Qdrant: embedded, as a server, and attached collections
- `arrays/`: arrays in memory and in mapped files
- modules beside the rooms, which every room may import: `config`, `errors`, `extras`, `files`,
  `progress`, `records`

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
    "__version__",
]

# These import Qdrant, so they are imported when they are first used.
_LATER = {
    "Part": "cart_qdrant.search.query",
    "Query": "cart_qdrant.search.query",
    "Retriever": "cart_qdrant.search.retriever",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
