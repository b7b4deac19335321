"""The variants of an ablation: what differs from the full method in each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cart_qdrant.identifiers.codec import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationOptions:
    """How much is run.

    Attributes:
        seeds: Times that every variant is trained.
        pairs: Captions that a generator learns from, at most.
        queries: Held-out queries of each stratum, at most.
        beams: Beam width.
        epochs: Epochs of each generator.
    """

    seeds: int = 3
    pairs: int = 10_000
    queries: int = 300
    beams: int = 100
    epochs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row: what differs from the full method.

    Attributes:
        name: As it is shown.
        group: Experiment that the row belongs to.
        network: Fields of `GeneratorConfig` that differ.
        rdrop: Weight of R-Drop.
        sizes: Coarse clusters, codes of a residual level, and residual levels; None takes those of
            the index's largest space.
        method: How the residual codebooks are made.
        prior: Whether the logits correct the prior; the paper's generator has none.
        correct: Whether there is a transformer at all.
        noise: Length of the noise on the unit media vectors.
    """

    name: str
    group: str
    network: Mapping[str, bool] = field(default_factory=dict)
    rdrop: float = 0.0
    sizes: tuple[int, int, int] | None = None
    method: Method = "rkmeans"
    prior: bool = True
    correct: bool = True
    noise: float = 0.0


def variants(sizes: tuple[int, int, int]) -> list[Variant]:
    """All rows, for an index whose identifiers have these sizes (see `Variant.sizes`)."""
    k, v, m = sizes
    codes = [n for n in (v // 2, 2 * v, 4 * v) if n > 1]
    return [
        Variant(name="full", group="fusion"),
        Variant(name="no coarse fusion", group="fusion", network={"coarse_fusion": False}),
        Variant(name="no fine fusion", group="fusion", network={"fine_fusion": False}),
        Variant(name="plain average", group="fusion", network={"fine_gates": False}),
        Variant(name="with R-Drop", group="fusion", rdrop=1.0),
        Variant(name="no prior (as the paper)", group="prior", prior=False),
        Variant(name="prior alone", group="prior", correct=False),
        Variant(name="no K-Means", group="identifiers", sizes=(1, v, m)),
        Variant(name="no RQ", group="identifiers", sizes=(k, v, 0)),
        Variant(name="learned RQ", group="identifiers", method="rvq"),
        *(
            Variant(name=f"length {n}", group="length", sizes=(k, v, n - 2))
            for n in (4, 5, 6)
        ),
        *(Variant(name=f"codes {n}", group="codes", sizes=(n, n, m)) for n in codes),
        *(Variant(name=f"noise {n}", group="noise", noise=n) for n in (0.25, 0.5, 1.0)),
    ]  # fmt: skip
