"""The hyper-parameters of every learner."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Adoption(StrEnum):
    """What a learner does with a new global model."""

    REPLACE = "replace"
    """The global model as it is."""
    MIX = "mix"
    """The device's own weights move a share of the way (`LearnerConfig.mix`) towards the global model's."""
    LAST_LAYER = "last_layer"
    """The global model's hidden layers; the last layer stays the device's own."""
    BETTER = "better"
    """What is best on the device's own recent examples: the global model, the mix, or the device's own."""


class Optimiser(StrEnum):
    """How a network takes its steps."""

    SGD = "sgd"
    MOMENTUM = "momentum"
    ADAM = "adam"


class Drift(StrEnum):
    """What watches a device's errors for concept drift."""

    ADWIN = "adwin"
    PAGE_HINKLEY = "page-hinkley"
    NONE = "none"


DEFAULT_FEATURES = (
    *(f"lag_{i}" for i in range(1, 7)),
    "mean_1.5", "mean_4", "mean_20", "mean_80", "profile", "max_10", "min_10", "horizon_ago",
    "gap", "day_sin_1", "day_cos_1", "day_sin_2", "day_cos_2",
)  # fmt: skip
"""Chosen on Intel Lab days, see docs/learning.md."""


class LearnerConfig(BaseModel):
    """The hyper-parameters of every learner."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    forecaster: str = Field("network", description="the model of a device, by its plug-in's name")
    detectors: tuple[str, ...] = Field((), description="detectors beside the built-in ones, by their plug-ins' names")
    features: tuple[str, ...] = Field(DEFAULT_FEATURES, min_length=1, description="what a model is given")
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((32,), description="widths of the hidden layers")
    skip: bool = Field(True, description="whether the network's last layer also sees the features themselves")
    horizon_s: float = Field(600.0, gt=0, le=86_400, description="how far ahead the second forecast looks, s")
    optimiser: Optimiser = Field(Optimiser.SGD, description="how the network takes its steps")
    learning_rate: float = Field(0.001, gt=0, description="length of the first steps")
    learning_rate_decay: float = Field(100_000.0, gt=0, description="steps after which their length is halved")
    gradient_clip: float = Field(1.0, gt=0, description="longest gradient, Euclidean")
    memory: float = Field(5_760.0, ge=100, description="readings after which scaling forgets (2,880: a day of 30 s)")
    drift: Drift = Field(Drift.ADWIN, description="what watches the errors for concept drift")
    update_every: int = Field(100, ge=1, description="samples between two updates of a device")
    adoption: Adoption = Field(Adoption.BETTER, description="what a device does with the global model")
    proximal: float = Field(0.0, ge=0, description="how hard a network is held near the global model while it learns")
    mix: float = Field(0.5, gt=0, le=1, description="the global model's share when it is mixed in")
    false_alarms_per_day: float = Field(1.0, gt=0, description="false alarms accepted of a device, per day")
    forget_after: int = Field(1_000, ge=1, description="readings after which a sensor no longer named is dropped")
    seed: int = Field(0, ge=0, description="of the starting weights")
