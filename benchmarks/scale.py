"""The tree decode at scale, beside the engine's graph search.

    python benchmarks/scale.py /tmp/new/.cartq /tmp/new/queries-dev.jsonl --items 300000

Takes a trained index (see `quality.py new`). Its real vectors are hidden among made ones: mixtures
`l x_i + (1 - l) x_j` of two real neighbours, `l ~ Beta(2, 2)`, plus noise of half their length,
normalised. Identifiers are fitted on them as for an index of that size. Queries are real texts
through the index's query tower. Prints Markdown: the share of the exact ten nearest among the
candidates, and R@10 of the real items that the texts ask for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from qdrant_client import models

from cart_qdrant.arrays.types import FloatArray, IndexArray
from cart_qdrant.arrays.vectors import unique_ratio
from cart_qdrant.generator.beam_search import PriorScorer, beam_search
from cart_qdrant.generator.prior import HUB, NodeBonus, prior_logits
from cart_qdrant.identifiers.codec import DisambiguationTokens, IdentifierConfig, fit_codec
from cart_qdrant.identifiers.hubness import media_space
from cart_qdrant.identifiers.quantizer import Codec
from cart_qdrant.identifiers.trie import Trie
from cart_qdrant.index.identifier_files import load_codec
from cart_qdrant.index.index import Index
from cart_qdrant.index.points import read_vectors
from cart_qdrant.storage.edge import EdgeStore
from cart_qdrant.storage.protocol import MEDIA, CollectionSpec
from cart_qdrant.training.trained_model import Model

SPACE = "visual"
WIDTHS = (200, 400, 1_000, 2_000)
EF = (128, 256, 512, 1_024)
NOISE = 0.5


def main() -> None:
    """Make the vectors, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path, help="trained index")
    parser.add_argument("queries", type=Path, help="queries.jsonl with one relevant file each")
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--asked", type=int, default=300, help="queries")
    parser.add_argument("--sizes", help="K,V,M instead of what the size of the collection gives")
    parser.add_argument("--no-graph", action="store_true", help="leave out the engine")
    given = parser.parse_args()
    real_ND, q_BD, right_B, hub, metric, scale = read_index(given.index, given.queries, given.asked)
    if given.items < len(real_ND):
        sys.exit(f"--items is {given.items}, but the index holds {len(real_ND)} already")
    x_ND = make(real_ND, given.items)
    exact = nearest(q_BD, x_ND, 10)
    hub_N = hub(x_ND)
    best_hub = nearest(q_BD, x_ND, 10, HUB * hub_N)
    print(f"{len(x_ND):,} vectors, {len(q_BD)} queries\n")
    print("| candidates by | share of exact 10 | share of exact 10, less hubness | R@10 by cosine "
          "| R@10, less hubness | ms a query |")  # fmt: skip
    print("|---|---:|---:|---:|---:|---:|")

    def row(name: str, found: Sequence[IndexArray], ms: float) -> None:
        cosine, less = (reranked(found, q_BD, x_ND, right_B, h) for h in (None, HUB * hub_N))
        print(
            f"| {name} | {share(found, exact):.3f} | {share(found, best_hub):.3f} "
            f"| {100 * cosine:.1f} | {100 * less:.1f} | {ms:.2f} |",
            flush=True,
        )

    row("exact search", list(exact), 0.0)
    row("exact search, less hubness", list(best_hub), 0.0)
    codec, rows_NL = identify(x_ND, metric, given.sizes)
    for name, hubs in (("without", None), ("with", hub_N)):
        decode = decoder(codec, rows_NL, hubs, scale)
        for width in WIDTHS:
            ask_tree = partial(decode, width=width)
            row(f"tree {name} hubness, {width} beams", *timed(ask_tree, q_BD))
    if not given.no_graph:
        with tempfile.TemporaryDirectory() as folder:
            store = graph(Path(folder) / "store", x_ND)
            for ef in EF:
                row(f"graph, ef {ef}, 100 nearest", *timed(partial(ask, store, ef=ef), q_BD))
            store.close()


def read_index(
    index: Path, queries: Path, asked: int
) -> tuple[
    FloatArray, FloatArray, IndexArray, Callable[[FloatArray], FloatArray], FloatArray | None, float
]:
    """Real vectors, query vectors, what they ask for, hubness, the queries' metric, the scale."""
    with tempfile.TemporaryDirectory() as folder:
        # A copy: the embedded store belongs to one process.
        root = Path(shutil.copytree(index, Path(folder) / ".cartq"))
        with Index.open(root) as opened:
            generator = opened.manifest.generator
            if generator is None:
                sys.exit(f"{index} is not trained")
            vectors = read_vectors(opened)
            row = {one: n for n, one in enumerate(vectors.ids)}
            of: dict[str, int] = {}
            for record in opened.store.scroll(with_payload=["path"]):
                of[Path((record.payload or {})["path"]).name] = row[str(record.id)]
            model = Model.load(opened.folder.path(generator.folder), opened.text_encoder())
            bank, codec = opened.query_bank(), load_codec(opened)
            rows = [json.loads(line) for line in queries.read_text().splitlines()]
            picked = np.random.default_rng(0).permutation(len(rows))[:asked]
            texts = [rows[n]["query"] for n in picked]
            right = np.asarray([of[Path(rows[n]["relevant"][0]).name] for n in picked])
            q_BD = model.encoder.media_vectors(texts, SPACE)
    assert bank is not None and codec is not None
    metric = codec.quantizers[SPACE].metric_DD

    def hub(x_ND: FloatArray) -> FloatArray:
        return bank.hubness(x_ND, media_space(SPACE), np.zeros(len(x_ND), np.uint64))

    return vectors.x_ND, q_BD, right, hub, metric, model.calibration.scale


def make(real_ND: FloatArray, count: int) -> FloatArray:
    """The real vectors first, made ones after them."""
    rng = np.random.default_rng(0)
    near = np.concatenate(
        [np.argpartition(-(block @ real_ND.T), 50, axis=1)[:, :50]
         for block in np.array_split(real_ND, 16)]
    )  # fmt: skip
    out = np.empty((count, real_ND.shape[1]), dtype=np.float32)
    out[: len(real_ND)] = real_ND
    for begin in range(len(real_ND), count, 50_000):
        end = min(begin + 50_000, count)
        one = rng.integers(0, len(real_ND), end - begin)
        other = near[one, rng.integers(0, 50, end - begin)]
        share_ = rng.beta(2, 2, (end - begin, 1)).astype(np.float32)
        noise = rng.standard_normal((end - begin, real_ND.shape[1]), dtype=np.float32)
        mixed = share_ * real_ND[one] + (1 - share_) * real_ND[other]
        mixed += NOISE / np.sqrt(real_ND.shape[1]) * noise
        out[begin:end] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return out


def nearest(
    q_BD: FloatArray, x_ND: FloatArray, k: int, less_N: FloatArray | None = None
) -> IndexArray:
    """The k best of each query (B, k)."""
    out = []
    for q_D in q_BD:
        scores = x_ND @ q_D if less_N is None else x_ND @ q_D - less_N
        out.append(np.argpartition(-scores, k)[:k])
    return np.stack(out)


def identify(
    x_ND: FloatArray, metric: FloatArray | None, sizes: str | None
) -> tuple[Codec, npt.NDArray[np.int32]]:
    """Code books, and the identifier of each vector."""
    begin = time.perf_counter()
    config = IdentifierConfig(method="rkmeans")
    if sizes is not None:
        k, v, m = (int(n) for n in sizes.split(","))
        config = IdentifierConfig(method="rkmeans", coarse=k, codes=v, levels=m)
    codec = fit_codec({SPACE: x_ND}, config, {} if metric is None else {SPACE: metric})
    quantizer = codec.quantizers[SPACE]
    codes_NL = quantizer.encode(x_ND)
    say(
        f"K {len(quantizer.centers_KD)}, V {quantizer.books_MVD.shape[1]}, M "
        f"{len(quantizer.books_MVD)}: U {unique_ratio(codes_NL):.3f}, error "
        f"{quantizer.error:.3f}, fitted and coded in {time.perf_counter() - begin:.0f} s"
    )
    return codec, DisambiguationTokens().complete(codes_NL)


def decoder(
    codec: Codec, rows_NL: npt.NDArray[np.int32], hub_N: FloatArray | None, scale: float
) -> Callable[..., IndexArray]:
    """Items that the beams of one query name."""
    begin = time.perf_counter()
    trie = Trie.build(rows_NL, hub_N=hub_N)
    say(
        f"tree built in {time.perf_counter() - begin:.2f} s, "
        f"{trie.nbytes / len(trie):.1f} bytes an identifier"
    )
    gains = None if hub_N is None else NodeBonus(trie, HUB * scale)
    order = np.lexsort(rows_NL.T[::-1])

    def decode(q_D: FloatArray, width: int) -> IndexArray:
        levels = prior_logits(codec, {SPACE: q_D[None]}, SPACE, scale)
        (beams,) = beam_search(trie, PriorScorer(levels), 1, width, gains)
        return order[trie.nodes(beams.rows_KL)]

    return decode


def graph(path: Path, x_ND: FloatArray) -> EdgeStore:
    """The embedded store with its graph built."""
    store = EdgeStore(path)
    store.create(CollectionSpec(vectors={MEDIA: x_ND.shape[1]}))
    begin = time.perf_counter()
    for start in range(0, len(x_ND), 2_000):
        store.upsert(
            [
                models.PointStruct(
                    id=str(_uuid(start + n)), vector={MEDIA: row}, payload={"n": start + n}
                )
                for n, row in enumerate(x_ND[start : start + 2_000].tolist())
            ]
        )
    written = time.perf_counter()
    store.build_graph()
    say(
        f"graph: written in {written - begin:.0f} s, built in {time.perf_counter() - written:.0f} s"
    )
    return store


def _uuid(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012x}"


def ask(store: EdgeStore, q_D: FloatArray, ef: int) -> IndexArray:
    """The graph's hundred nearest."""
    request = models.QueryRequest(
        query=q_D.tolist(), using=MEDIA, limit=100, params=models.SearchParams(hnsw_ef=ef),
        with_payload=False,
    )  # fmt: skip
    (found,) = store.query_batch([request])
    return np.asarray([int(str(hit.id)[-12:], 16) for hit in found], dtype=np.intp)


def timed(
    search: Callable[[FloatArray], IndexArray], q_BD: FloatArray
) -> tuple[list[IndexArray], float]:
    """Answers one by one, and the median of their milliseconds."""
    search(q_BD[0])
    out, times = [], []
    for q_D in q_BD:
        begin = time.perf_counter()
        out.append(search(q_D))
        times.append(time.perf_counter() - begin)
    return out, 1e3 * float(np.median(times))


def share(found: Sequence[IndexArray], exact: IndexArray) -> float:
    """Mean share of the exact best that is among the candidates."""
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))


def reranked(
    found: Sequence[IndexArray],
    q_BD: FloatArray,
    x_ND: FloatArray,
    right_B: IndexArray,
    less_N: FloatArray | None,
) -> float:
    """R@10 of candidates in the order of their exact scores."""
    hits = 0
    for q_D, items, right in zip(q_BD, found, right_B, strict=True):
        scores = x_ND[items] @ q_D - (0 if less_N is None else less_N[items])
        hits += int(right in items[np.argsort(-scores)[:10]])
    return hits / len(q_BD)


def say(text: str) -> None:
    """To standard error, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
