"""LangChain retriever over a cart-qdrant index.

```python
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_langchain import CartQdrantRetriever

with Retriever.open(".cartq") as engine:
    documents = CartQdrantRetriever(retriever=engine, k=5).invoke("a dog surfing")
```
"""

from cart_qdrant.extras import require

require("langchain", "langchain_core")

from cart_qdrant_langchain.retriever import CartQdrantRetriever  # noqa: E402 - it imports the host

__all__ = ["CartQdrantRetriever"]
