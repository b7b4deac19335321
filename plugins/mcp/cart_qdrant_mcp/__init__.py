"""Model Context Protocol server over a cart-qdrant index.

```python
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_mcp import make_server

with Retriever.open(".cartq") as engine:
    make_server(engine).run()  # stdio; run("streamable-http", port=8000) for HTTP
```
"""

from cart_qdrant.extras import require

require("mcp", "mcp.server.mcpserver")

from cart_qdrant_mcp.server import make_server  # noqa: E402 - it imports the host

__all__ = ["make_server"]
