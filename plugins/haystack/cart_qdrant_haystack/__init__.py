"""Haystack component over a cart-qdrant index.

```python
from haystack import Pipeline
from cart_qdrant_haystack import CartQdrantRetriever

pipeline = Pipeline()
pipeline.add_component("media", CartQdrantRetriever(".cartq", top_k=5))
documents = pipeline.run({"media": {"query": "a dog surfing"}})["media"]["documents"]
```

By default Haystack loads only modules that it trusts: load the file of a pipeline with
`Pipeline.load(file, allowed_modules=["cart_qdrant_haystack.retriever"])`.
"""

from cart_qdrant.extras import require

require("haystack", "haystack")

from cart_qdrant_haystack.retriever import CartQdrantRetriever  # noqa: E402 - it imports the host

__all__ = ["CartQdrantRetriever"]
