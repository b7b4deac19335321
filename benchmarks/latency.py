"""Text to hits at growing sizes, beside what people would use instead.

    python benchmarks/latency.py /tmp/new/.cartq /tmp/new/queries-dev.jsonl --items 1000 100000

Takes a trained index (see `quality.py new`). For each size an index is made in a temporary folder:
the real items first, then made vectors as in `scale.py`, identifiers fitted on all of them, the
trained query encoder as it is and no correction by the generator, which has
learned other identifiers. Queries are real texts, asked one by one in a warm process:

- the lanes of `Retriever.search`, whole, with the share of each step, after other texts, up to
  2,000, have been asked; for one lane also `first`, p50 of the first 200 in the process: of a large
  index, what these touch is read from disk;
- numpy, all cosines; faiss, HNSWFlat at the least `ef` with R@10 >= .98 of exact search: both
  with our query encoder;
- a text tower of ImageBind's size (24 layers of 1024, 77 tokens; random weights, since time does
  not depend on them) before the same graph.

A second table tells what is found of the ten best of an exact search, by cosine and by cosine less
hubness (as much of it as the decoder takes, whose aim that is), by more and more beams.

Then `cartq search` as a whole process, answers of `search_many` a second, and memory: of processes
that have answered twenty queries each, what they own and what they have mapped of files. Prints a
Markdown table; `--json FILE` keeps the numbers for `plots.py`, `--work FOLDER` the indexes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from qdrant_client import models
from scale import SPACE, make, nearest, share

from cart_qdrant.arrays.types import FloatArray
from cart_qdrant.files import folder_hash, save_arrays
from cart_qdrant.generator.artifacts import CALIBRATION
from cart_qdrant.generator.decode import IdentifierDecoder
from cart_qdrant.generator.prior import HUB, NodeBonus
from cart_qdrant.identifiers.codec import DisambiguationTokens, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import media_space
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.index.collection import identifier_fields
from cart_qdrant.index.identifier_files import load_codec, load_table
from cart_qdrant.index.identify import assign_new
from cart_qdrant.index.index import Index
from cart_qdrant.index.manifest import Artifact, IdentifierInfo
from cart_qdrant.index.points import read_vectors
from cart_qdrant.records import Identifier
from cart_qdrant.search.retriever import Retriever
from cart_qdrant.search.store_lists import MIN_CANDIDATES
from cart_qdrant.search.trained_model import TrainedModel
from cart_qdrant.storage import requests as qdrant
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import CAPTION, MEDIA

LANES = ("generative", "dense", "auto")
MADE = 0x00000000_0000_4000_8000_000000000000
"""Point id of the first vector that is made."""
BEAMS = (50, 100, 200, 400, 1000)
BLOCK, OTHERS = 1_000, 2_000
VECTORS = "vectors.npy"
EF = (64, 128, 256, 512, 1024)


def main() -> None:
    """Make the indexes, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="trained index")
    parser.add_argument("queries", type=Path, help='lines of {"query": "..."}')
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--asked", type=int, default=200, help="queries")
    parser.add_argument("--no-graphs", action="store_true", help="leave out graphs of vectors")
    parser.add_argument("--no-imagebind", action="store_true", help="leave out its text tower")
    parser.add_argument("--cores", type=int, help="use so many cores; all of them if left out")
    parser.add_argument("--work", type=Path, help="folder to keep the indexes in")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    if given.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    rows = [json.loads(line)["query"] for line in given.queries.read_text().splitlines()]
    picked = np.random.default_rng(0).permutation(len(rows))[: given.asked]
    texts = [rows[n] for n in picked]
    others = sorted(set(rows) - set(texts))[:OTHERS]
    out: list[dict[str, Any]] = []
    tower = None if given.no_imagebind else alone(imagebind)
    graph = not given.no_graphs
    for count in given.items:
        with tempfile.TemporaryDirectory() as folder:
            root = (given.work or Path(folder)) / str(count) / ".cartq"
            vectors = root.with_name(VECTORS)
            if not vectors.exists():
                np.save(vectors, make_index(given.index, root, count, graph=graph))
            out += measure(root, vectors, texts, others, graph=graph, tower=tower)
        if given.json:
            given.json.write_text(json.dumps(out))
    table([row for row in out if "share" not in row])
    print()
    shares([row for row in out if "share" in row])


def make_index(source: Path, root: Path, count: int, *, graph: bool) -> FloatArray:
    """An index of `count` items beside what the source has learned; their vectors (N, D)."""
    shutil.copytree(source, root)  # makes the folders above, too
    with Index.open(root) as index, index.folder.lock():
        info, store = index.manifest.identifiers, index.store
        assert info is not None
        vectors = read_vectors(index)
        x_ND = make(vectors.x_ND, count) if count > len(vectors.ids) else vectors.x_ND[:count]
        old = load_codec(index)
        assert old is not None
        metric = old.quantizers[SPACE].metric_DD
        begin = time.perf_counter()
        codec = fit_codec(
            {SPACE: x_ND}, IdentifierConfig(), {} if metric is None else {SPACE: metric}
        )
        rows_NL = DisambiguationTokens().complete(codec.quantizers[SPACE].encode(x_ND))
        say(f"{count:,}: identifiers fitted and coded in {time.perf_counter() - begin:.0f} s")
        bank = index.query_bank()
        assert bank is not None
        hub_N = bank.hubness(x_ND, media_space(SPACE), np.zeros(len(x_ND), np.uint64))
        if count < len(vectors.ids):
            store.delete(vectors.ids[count:])
        for field in store.info().indexed:
            if field.startswith(index.key) and field not in identifier_fields(info.field):
                store.drop_index(field)  # of earlier identifiers
        begin = time.perf_counter()
        old_points = {str(r.id): r for r in store.scroll(with_vectors=[MEDIA, CAPTION])}
        for start in range(0, count, BLOCK):
            store.upsert(
                [
                    _point(n, vectors.ids, old_points, x_ND, rows_NL, hub_N, info.field)
                    for n in range(start, min(start + BLOCK, count))
                ]
            )
        say(f"written in {time.perf_counter() - begin:.0f} s")
        if graph:
            begin = time.perf_counter()
            assert isinstance(store, EdgeStore)
            store.build_graph()
            say(f"graph in {time.perf_counter() - begin:.0f} s")
        store.flush()
        generator = index.manifest.generator
        assert generator is not None
        folder = _close_gates(root / generator.folder.name, codec.levels)
        index.put(
            replace(
                index.manifest,
                identifiers=_coded(index, codec),
                generator=replace(generator, folder=folder),
            )
        )
        begin = time.perf_counter()
        assign_new(index)  # makes the tree and the table of what is stored
        say(f"tree and table in {time.perf_counter() - begin:.0f} s")
    return x_ND


def _close_gates(folder: Path, levels: int) -> Artifact:
    """The generator has learned other identifiers: the prior alone decodes."""
    path = folder / CALIBRATION
    calibration = json.loads(path.read_text())
    path.write_text(json.dumps({**calibration, "gates": [0.0] * levels}))
    return Artifact(folder.name, folder_hash(folder))


def _point(
    n: int,
    ids: Sequence[str],
    old: dict[str, Any],
    x_ND: FloatArray,
    rows_NL: npt.NDArray[np.int32],
    hub_N: FloatArray,
    field: str,
) -> models.PointStruct:
    *codes, u = rows_NL[n].tolist()
    cart = {**Identifier(tuple(codes), u).to_payload(), "hub": {"media": float(hub_N[n])}}
    vector = {MEDIA: x_ND[n].tolist()}
    if n < len(ids):
        record = old[ids[n]]
        if CAPTION in record.vector:
            vector[CAPTION] = record.vector[CAPTION]
        return models.PointStruct(id=ids[n], vector=vector, payload={**record.payload, field: cart})
    payload = {
        "path": f"made/{n}.jpg", "modality": "image", "start": 0.0, "end": 0.0, "captions": [],
        "hash": f"{n:032x}", "size": 1, "mtime": 0.0, field: cart,
    }  # fmt: skip
    return models.PointStruct(id=str(UUID(int=MADE + n)), vector=vector, payload=payload)


def _coded(index: Index, codec: Codec) -> IdentifierInfo:
    """The manifest's entry for the new identifiers, whose books are written here."""
    info, root = index.manifest.identifiers, index.folder.root
    assert info is not None
    name = "identifiers-made.safetensors"
    books = Artifact(name, save_arrays(root / name, codec.to_arrays()))
    return replace(info, books=books, meta=codec.to_meta(), levels=codec.levels)


def measure(
    root: Path,
    vectors: Path,
    texts: Sequence[str],
    others: Sequence[str],
    *,
    graph: bool,
    tower: dict[str, float] | None,
) -> Iterator[dict[str, Any]]:
    """Rows of the tables for one index."""
    x_ND = np.load(vectors)
    count = len(x_ND)
    with Retriever.open(root) as retriever:
        for lane in LANES if graph else LANES[:1]:
            took: list[dict[str, float]] = []

            def ask(text: str, lane: Any = lane, took: Any = took) -> None:
                took.append(retriever.search(text, lane=lane).took_ms)

            first = {"first": timed(ask, texts)["p50"]} if lane == LANES[0] else {}
            retriever.search_many(others, lane=lane)
            took.clear()
            times = timed(ask, texts)
            steps = {
                step: round(float(np.median([one[step] for one in took[5:]])), 2)
                for step in ("encode", "decode", "resolve")
            }
            row = {"items": count, "by": f"cart, {lane}", **times, **first, **steps}
            begin = time.perf_counter()
            retriever.search_many(texts, lane=lane)
            row["per_second"] = round(len(texts) / (time.perf_counter() - begin))
            yield row
        model = retriever._loaded.model
        assert model is not None
        q_BD = model.encode(texts).media[SPACE]
        encode = timed(lambda text: model.encode([text]), texts)
        yield from curve(retriever, x_ND, q_BD, graph=graph)
    yield {"items": count, "by": "cart, opened and asked", **alone(asking, root, texts[:20])}
    exact = nearest(q_BD, x_ND, 10)
    scan = timed(lambda q: nearest(q[None], x_ND, 10), list(q_BD))
    memory = alone(scanning, root, vectors, texts[:20])
    yield {"items": count, "by": "our encoder + numpy", **added(encode, scan), **memory}
    if graph:
        yield from with_faiss(root, x_ND, texts, q_BD, exact, encode, tower)
    yield {"items": count, "by": "cartq search, process", **processes(root, texts[:7])}


def curve(
    retriever: Retriever, x_ND: FloatArray, q_BD: FloatArray, *, graph: bool
) -> Iterator[dict[str, Any]]:
    """What is found of what exact searches find."""
    loaded = retriever._loaded
    trie, codec, table = loaded.trie, loaded.codec, load_table(loaded.index)
    assert trie is not None and codec is not None and table is not None
    # Points that were made follow the real ones, which are in order of their ids.
    key_N = np.asarray([int.from_bytes(k.ljust(16, b"\0"), "big") for k in table.key_N.tolist()])
    made_N = np.asarray([key >> 64 == MADE >> 64 for key in key_N.tolist()])
    item_N = np.empty(len(key_N), dtype=np.intp)
    item_N[~made_N] = np.arange((~made_N).sum())
    item_N[made_N] = [key - MADE for key in key_N[made_N].tolist()]
    item_of_leaf = np.empty(len(key_N), dtype=np.intp)
    item_of_leaf[table.leaf_N] = item_N
    less_N = np.empty(len(key_N), dtype=np.float32)
    less_N[item_of_leaf] = HUB * trie.hub_N
    exact = {"cosine": nearest(q_BD, x_ND, 10), "less": nearest(q_BD, x_ND, 10, less_N)}
    scale = retriever.calibration.scale
    for width in BEAMS:
        for name, bonus in (("", None), (", with hubness", NodeBonus(trie, scale * HUB))):
            found: list[npt.NDArray[np.intp]] = []

            decoder = IdentifierDecoder(
                trie=trie, codec=codec, scale=scale, width=width, gates=[0.0] * codec.levels,
                node_bonus=bonus,
            )  # fmt: skip

            def ask(q_D: FloatArray, decoder: Any = decoder, to: Any = found) -> None:
                (beams,) = decoder.decode({SPACE: q_D[None]})
                to.append(item_of_leaf[beams.leaf_K])

            ms = timed(ask, list(q_BD))["p50"]
            of = {name: round(share(found[5:], ten), 3) for name, ten in exact.items()}
            yield {"items": len(x_ND), "by": f"{width} beams{name}", "share": of, "p50": ms}
    if graph:
        request = [
            qdrant.QueryRequest(query=q_D, using=MEDIA, limit=MIN_CANDIDATES) for q_D in q_BD
        ]
        place_of = dict(zip(key_N.tolist(), item_N.tolist(), strict=True))
        found = [
            np.asarray([place_of[UUID(str(one)).int] for one in answer.ids])
            for answer in retriever._index.store.query_ids(request)
        ]
        of = {name: round(share(found, ten), 3) for name, ten in exact.items()}
        yield {"items": len(x_ND), "by": f"the store's {MIN_CANDIDATES} nearest", "share": of}


def shares(rows: Sequence[dict[str, Any]]) -> None:
    """Print what `curve` found."""
    print("| items | by | share of exact ten | less hubness | p50 |\n|---:|---|---:|---:|---:|")
    for row in rows:
        of = row["share"]
        print(
            f"| {row['items']:,} | {row['by']} | {of['cosine']:.3f} | {of['less']:.3f} "
            f"| {row.get('p50', '')} |"
        )


def with_faiss(
    root: Path,
    x_ND: FloatArray,
    texts: Sequence[str],
    q_BD: FloatArray,
    exact: Any,
    encode: dict[str, float],
    tower: dict[str, float] | None,
) -> Iterator[dict[str, Any]]:
    """HNSWFlat behind our encoder, and behind a tower of ImageBind's size."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    begin = time.perf_counter()
    index = faiss.IndexHNSWFlat(x_ND.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(x_ND)
    built = time.perf_counter() - begin
    faiss.omp_set_num_threads(1)
    for ef in EF:
        index.hnsw.efSearch = ef
        found = [index.search(q[None], 10)[1][0] for q in q_BD]
        if (recall := share(found, exact)) >= 0.98:
            break
    search = timed(lambda q: index.search(q[None], 10), list(q_BD))
    faiss.write_index(index, str(root.with_name("faiss")))
    memory = alone(walking, root, root.with_name("faiss"), texts[:20])
    name = f"faiss HNSW, ef {ef}, R {recall:.3f}, built in {built:.0f} s"
    both = {**added(encode, search), **memory}
    yield {"items": len(x_ND), "by": f"our encoder + {name}", **both}
    if tower is not None:
        ms = {key: round(value + tower["ms"], 1) for key, value in search.items()}
        theirs = {key: tower[key] + memory[key] for key in memory}
        yield {"items": len(x_ND), "by": f"ImageBind's text tower + {name}", **ms, **theirs}


def alone(work: Callable[..., dict[str, float]], *given: Any) -> dict[str, float]:
    """What a function tells that runs in a process of its own, and the memory it took."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_remembered, (work, given))


def _remembered(work: Callable[..., dict[str, float]], given: Sequence[Any]) -> dict[str, float]:
    found = work(*given)
    return {**memory_mb(), **found}


def asking(root: Path, texts: Sequence[str]) -> dict[str, float]:
    """Searches by the generative lane."""
    with Retriever.open(root) as retriever:
        for text in texts:
            retriever.search(text, lane="generative")
        _HELD.append(memory_mb())
    return _HELD[-1]


def scanning(root: Path, vectors: Path, texts: Sequence[str]) -> dict[str, float]:
    """Our encoder and numpy."""
    x_ND = np.load(vectors)
    _HELD.append(x_ND)
    nearest(_encoder(root).encode(texts).media[SPACE], x_ND, 10)
    return {}


def walking(root: Path, file: Path, texts: Sequence[str]) -> dict[str, float]:
    """Our encoder and faiss."""
    import faiss

    index = faiss.read_index(str(file))
    index.search(_encoder(root).encode(texts).media[SPACE], 10)
    _HELD.append(index)
    return {}


def imagebind() -> dict[str, float]:
    """Median milliseconds of a text through a tower of ImageBind's size."""
    import torch

    layer = torch.nn.TransformerEncoderLayer(
        1024, 16, 4096, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    tower = torch.nn.TransformerEncoder(layer, 24, enable_nested_tensor=False).eval()
    causal = torch.nn.Transformer.generate_square_subsequent_mask(77)
    x = torch.randn(1, 77, 1024)
    times = []
    with torch.inference_mode():
        for _ in range(7):
            begin = time.perf_counter()
            tower(x, mask=causal, is_causal=True)
            times.append(time.perf_counter() - begin)
    _HELD.append(tower)
    return {"ms": 1e3 * float(np.median(times[1:]))}


_HELD: list[Any] = []
"""What is measured must not be freed before."""


def _encoder(root: Path) -> TrainedModel:
    with Index.open(root) as index:
        generator = index.manifest.generator
        assert generator is not None
        model = TrainedModel(root / generator.folder.name)
    _HELD.append(model)
    return model


def memory_mb() -> dict[str, float]:
    """Resident memory in MB: what the process owns, and what it has mapped of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    names = {"own_mb": "RssAnon", "mapped_mb": "RssFile"}
    return {name: int(found[key].split()[0]) >> 10 for name, key in names.items()}


def processes(root: Path, texts: Sequence[str]) -> dict[str, float]:
    """Whole processes of `cartq search`, one after another; the first is not counted."""
    program = Path(sys.executable).with_name("cartq")
    times = []
    for text in texts:
        begin = time.perf_counter()
        subprocess.run(
            [program, "--index", root, "search", text, "--lane", "generative", "--json"],
            check=True, capture_output=True,
        )  # fmt: skip
        times.append(1e3 * (time.perf_counter() - begin))
    return percentiles(times[1:])


def timed(call: Callable[[Any], Any], things: Sequence[Any]) -> dict[str, float]:
    """Percentiles of the milliseconds of calls, the first five left out."""
    times = []
    for thing in [*things[:5], *things]:
        begin = time.perf_counter()
        call(thing)
        times.append(1e3 * (time.perf_counter() - begin))
    return percentiles(times[5:])


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99."""
    return {f"p{p}": round(float(np.percentile(ms, p)), 2) for p in (50, 95, 99)}


def added(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Percentiles of steps that follow each other, as if the slow ones met."""
    return {key: round(one[key] + other[key], 2) for key in one}


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print all rows."""
    names = (
        "p50", "p95", "p99", "first", "encode", "decode", "resolve", "per_second", "own_mb",
        "mapped_mb",
    )  # fmt: skip
    print(f"| items | by | {' | '.join(names)} |")
    print(f"|---:|---|{'---:|' * len(names)}")
    for row in rows:
        cells = " | ".join(str(row.get(name, "")) for name in names)
        print(f"| {row['items']:,} | {row['by']} | {cells} |")


def say(text: str) -> None:
    """To standard error, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
