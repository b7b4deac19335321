"""LlamaIndex retriever over a cart-qdrant index.

```python
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_llamaindex import CartQdrantRetriever

with Retriever.open(".cartq") as engine:
    nodes = CartQdrantRetriever(engine, k=5).retrieve("a dog surfing")
```
"""

from cart_qdrant.extras import require

require("llamaindex", "llama_index.core")

from cart_qdrant_llamaindex.retriever import CartQdrantRetriever  # noqa: E402 - it imports the host

__all__ = ["CartQdrantRetriever"]
