"""Model Context Protocol server over a cart-qdrant index.

```python
from cart_qdrant.search.retriever import Retriever
from cart_qdrant_mcp import make_server

with Retriever.open(".cartq") as engine:
    make_server(engine).run()  # stdio; for HTTP serve_http(server, HttpOptions(token=...))
```
"""

from cart_qdrant.extras import require

require("mcp", "mcp.server.mcpserver")

from cart_qdrant_mcp.http import HttpOptions, serve_http  # noqa: E402 - they import the host
from cart_qdrant_mcp.server import make_server  # noqa: E402

__all__ = ["HttpOptions", "make_server", "serve_http"]
