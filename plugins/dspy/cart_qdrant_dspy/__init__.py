"""DSPy retriever over a cart-qdrant index.

```python
import dspy
from cart_qdrant import Retriever
from cart_qdrant_dspy import CartQdrantRM

with Retriever.open(".cartq") as engine:
    media = CartQdrantRM(engine, k=5)
    print(media("a dog surfing").passages)  # also: dspy.configure(rm=media); dspy.Retrieve(k=5)
```
"""

from cart_qdrant.extras import require

require("dspy", "dspy")

from cart_qdrant_dspy.retriever import CartQdrantRM  # noqa: E402 - it imports the host

__all__ = ["CartQdrantRM"]
