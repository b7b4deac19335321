"""Haystack component over a cart-qdrant index.

```python
from haystack import Pipeline
from cart_qdrant_haystack import CartQdrantRetriever

pipeline = Pipeline()
pipeline.add_component("media", CartQdrantRetriever(".cartq", top_k=5))
documents = pipeline.run({"media": {"query": "a dog surfing"}})["media"]["documents"]
```

Haystack trusts no foreign module by itself: read a pipeline's file with
`Pipeline.load(file, allowed_modules=["cart_qdrant_haystack.retriever"])`.
"""

from cart_qdrant_haystack.retriever import CartQdrantRetriever

__all__ = ["CartQdrantRetriever"]
