"""A Qdrant server made of plain functions, for the tests of the server store."""

from __future__ import annotations

import copy
import json
from typing import Any
from urllib.parse import unquote

import httpx
from qdrant_client import QdrantClient

from cart_qdrant.storage.protocol import MEDIA
from cart_qdrant.storage.server import ServerStore
from tests.unit.storage.points import pid

URL = "http://qdrant.test:6333"
INFO = {
    "status": "green",
    "optimizer_status": "ok",
    "segments_count": 1,
    "config": {
        "params": {"vectors": {MEDIA: {"size": 4, "distance": "Cosine"}}},
        "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
        "optimizer_config": {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1000,
            "default_segment_number": 0,
            "flush_interval_sec": 5,
        },
    },
    "payload_schema": {},
}
DONE = {"operation_id": 1, "status": "completed"}


class FakeServer:
    """Answers like Qdrant to the requests that the store makes; `faults` come first."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.faults: list[httpx.Response | Exception] = []
        self.slept: list[float] = []
        self.exists = True
        self.known: set[str] = set()
        self.indexed: dict[str, Any] = {}
        """Payload fields with an index."""
        self.busy = 0
        """Looks at the collection after which an index that was asked for is there."""
        self.points = 0
        self.strict: dict[str, Any] | None = None
        self.vectors: dict[str, Any] = {}
        """Named vectors beside `MEDIA`."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        body = json.loads(request.content) if request.content else {}
        result = self.answer(request.method, request.url.path, body)
        if isinstance(result, httpx.Response):
            return result
        return httpx.Response(200, json={"result": result, "status": "ok", "time": 0.0})

    def answer(self, method: str, path: str, body: Any) -> Any:
        tail = path.removeprefix("/collections/c")
        if tail == "/exists":
            return {"exists": self.exists}
        if tail == "":
            if method == "PUT":
                self.exists = True
            return self.info() if method == "GET" else True
        if tail.startswith("/index"):
            if method == "PUT":
                self.indexed[body["field_name"]] = {"data_type": "keyword", "points": 0}
            else:
                self.indexed.pop(unquote(tail.removeprefix("/index/")), None)
            return DONE
        if tail == "/points" and method == "POST":
            return [{"id": i} for i in body["ids"] if i in self.known]
        if tail == "/points/query/batch":
            hit = {"id": pid(1), "version": 1, "score": 0.5}
            return [{"points": [hit]} for _ in body["searches"]]
        if tail == "/points/count":
            return {"count": 3}
        if tail == "/points/batch":
            return [DONE for _ in body["operations"]]
        return DONE

    def info(self) -> dict[str, Any]:
        """The collection, with what was asked for since."""
        found: dict[str, Any] = copy.deepcopy(INFO)
        found["points_count"] = self.points
        found["config"]["params"]["vectors"] |= self.vectors
        if self.strict is not None:
            found["config"]["strict_mode_config"] = self.strict
        self.busy -= 1
        found["payload_schema"] = self.indexed if self.busy < 0 else {}
        return found

    def store(self, **more: Any) -> ServerStore:
        client = QdrantClient(
            url=URL,
            check_compatibility=False,
            transport=httpx.MockTransport(self),
            api_key=None,
        )
        return ServerStore(client, "c", sleep=self.slept.append, **more)

    def sent(self, path: str) -> list[Any]:
        """Bodies of the requests to a path of the collection."""
        full = f"/collections/c{path}"
        return [json.loads(r.content) for r in self.requests if r.url.path == full and r.content]


def status(code: int, **headers: str) -> httpx.Response:
    return httpx.Response(code, json={"status": {"error": "because"}}, headers=headers)
