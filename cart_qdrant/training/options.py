"""How to train: the profiles that the command line offers, and the settings that replace theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cart_qdrant.errors import UsageError
from cart_qdrant.training.generator_fit import GeneratorFitConfig
from cart_qdrant.training.tower import TowerConfig

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

    Raises:
        UsageError: There is no such profile.
    """

    profile: str = "default"
    seed: int = 0
    resume: bool = True
    tower: TowerConfig | None = None
    generator: GeneratorFitConfig | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UsageError(
                f"--profile is {self.profile!r}, but must be one of {', '.join(PROFILES)}."
            )

    @property
    def settings(self) -> tuple[TowerConfig, GeneratorFitConfig]:
        """Settings of the query tower's and of the generator's training."""
        tower, generator = PROFILES[self.profile]
        return self.tower or tower, self.generator or generator
