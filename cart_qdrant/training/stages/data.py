"""Before the first stage: the corpus of an index, its split, and its texts encoded."""

from __future__ import annotations

import numpy as np

from cart_qdrant.errors import IndexMissingError
from cart_qdrant.progress import expect
from cart_qdrant.training.corpus import Corpus, read_corpus
from cart_qdrant.training.distillation import DISTILL_UNTIL, read_text_anchors
from cart_qdrant.training.forecast import forecast, in_words
from cart_qdrant.training.query_encoder import QueryEncoder
from cart_qdrant.training.seeding import seeded
from cart_qdrant.training.split import Split, split_pairs
from cart_qdrant.training.stages.state import Run, TrainingData
from cart_qdrant.training.text_states import TextStates

ZERO_SHOT = 0.6
"""Share of the embedder's own text vectors in a query vector after training on next to nothing; it
falls to zero at `DISTILL_UNTIL` captions (docs/experiments.md)."""
NETWORKS_VERSION = 3
"""Raised when the networks change, so that older checkpoints are not resumed."""


def read_data(run: Run) -> TrainingData:
    """Read and split the corpus, and encode its texts with the untrained half of the encoder.

    Raises:
        IndexMissingError: The index has no item.
    """
    index, seed = run.index, run.options.seed
    anchors = index.text_anchors()
    corpus = read_corpus(index, None if anchors is None else anchors.name)
    if not len(corpus):
        raise IndexMissingError("The index is empty.", "Fill it: `cartq ingest FOLDER`.")
    split = split_pairs(corpus, seed)
    if anchors is None:
        # Of no held-out text, which would find itself.
        learned = [corpus.texts[pair] for pair in split.train_P]
        anchors = read_text_anchors(index, learned, seed, run.reporter)
    if not run.options.resume:
        index.clear_work(["train"])
    spaces = [str(space) for space in np.unique(corpus.vectors.spaces[corpus.item_P])]
    with seeded(seed):
        dim = index.manifest.embedder.dim
        encoder = QueryEncoder(index.text_encoder(), dict.fromkeys(spaces, dim), run.compute)
    phases = forecast(corpus, split, encoder, run.options)
    expect(run.reporter, phases)
    run.reporter.say(in_words(sum(phase.seconds for phase in phases), run.compute))
    run.reporter.phase("reading captions", None)
    data = f"{corpus.digest()} {split.digest()}"
    return TrainingData(
        corpus=corpus,
        split=split,
        encoder=encoder,
        states=TextStates(encoder, corpus.texts),
        spaces=spaces,
        text_anchors=anchors,
        zero_shot=ZERO_SHOT * max(0.0, 1 - len(split.train_P) / DISTILL_UNTIL),
        fingerprint=f"{NETWORKS_VERSION} {run.options.settings} {seed} {data}",
        remarks=_remarks(corpus, split),
    )


def _remarks(corpus: Corpus, split: Split) -> list[str]:
    out = []
    if not corpus.captioned.any():
        labels = " and on labels that the embedder gave them" if corpus.texts else ""
        out.append(
            f"No item has a caption: the networks were trained on the items' own vectors{labels}."
        )
    if not len(split.report):
        out.append(
            "Fewer than 20 files have texts that no other file has: nothing was held out, recall "
            "was not measured, and the router keeps its defaults."
        )
    return out
