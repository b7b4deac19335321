"""Options of a training: the profiles that the command line offers, and settings in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cart_qdrant.compute import ComputeOptions
from cart_qdrant.errors import UsageError
from cart_qdrant.identifiers.parts import MADE_OF, MadeOf


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """How the query tower is trained.

    Attributes:
        epochs: Passes over the training pairs, at most.
        batch: Pairs of a step.
    """

    epochs: int = 3
    min_steps: int = 150
    """Steps at least, for collections of a few captions."""
    batch: int = 512
    lr: float = 1e-4
    """Peak learning rate of the tuned layers."""
    head_lr: float = 2e-3
    """Peak learning rate of the heads."""
    noise: float = 0.7
    """Length of the noise that is added to the unit sentence features."""
    token_dropout: float = 0.1
    """Share of the tokens of a text that a step leaves out."""
    patience: int = 2
    """Epochs without a better validation recall before stopping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorFitConfig:
    """How the generator is trained.

    Attributes:
        epochs: Passes over the training pairs.
        min_steps: Steps at least, for collections of a few captions.
        batch: Pairs of a step.
        lr: Peak learning rate.
    """

    epochs: int = 2
    min_steps: int = 60
    batch: int = 256
    lr: float = 1e-3
    own_share: float = 0.25
    """Items that are learned from their own vector, as a share of the pairs."""
    own_noise: float = 0.5
    """Length of the noise that is added to an item's own unit vector."""
    rdrop: float = 0.0
    """Weight of the bidirectional KL divergence between two dropout passes (R-Drop, as in the
    paper, whose gain is 0.14 points at twice the cost)."""


PROFILES: Mapping[str, tuple[TowerConfig, GeneratorFitConfig]] = {
    "quick": (
        TowerConfig(epochs=1, min_steps=60),
        GeneratorFitConfig(epochs=1, min_steps=30),
    ),
    "default": (TowerConfig(epochs=4), GeneratorFitConfig(epochs=1)),
    "thorough": (TowerConfig(epochs=8, patience=3), GeneratorFitConfig(epochs=20)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train.

    Attributes:
        profile: Name of the settings in `PROFILES`.
        seed: Seed of all random numbers.
        resume: Whether a stopped run with the same data and options goes on.
        tower: Settings of the query tower's training; None takes those of the profile.
        generator: Settings of the generator's training; None takes those of the profile.
        compute: Device and number format.
        identifiers_from: What identifiers of items with captions are made of; those of the other
            items are made of their media vectors.

    Raises:
        UsageError: There is no such profile, or identifiers cannot be made of that.
    """

    profile: str = "default"
    seed: int = 0
    resume: bool = True
    tower: TowerConfig | None = None
    generator: GeneratorFitConfig | None = None
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    identifiers_from: MadeOf = "both"

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(
                f"--profile is {self.profile!r}, but must be one of {', '.join(PROFILES)}."
            )
        if self.identifiers_from not in MADE_OF:
            raise UsageError(
                f"--identifiers-from is {self.identifiers_from!r}, but must be one of "
                f"{', '.join(MADE_OF)}."
            )

    @property
    def settings(self) -> tuple[TowerConfig, GeneratorFitConfig]:
        """Settings of the query tower's and of the generator's training."""
        tower, generator = PROFILES[self.profile]
        return self.tower or tower, self.generator or generator
