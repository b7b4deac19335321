"""Model Context Protocol server over a cart-qdrant index.

```python
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_mcp import make_server

with Retriever.open(".cartq") as engine:
    make_server(engine).run()  # stdio; run("streamable-http", port=8000) for HTTP
```
"""

from cart_qdrant_mcp.server import make_server

__all__ = ["make_server"]
