"""Differential privacy of devices: what a global model may tell about one of them, and how much it has told so far.

The guarantee is about a whole device: all that it ever learned, not one reading. Two runs are neighbours where they
differ in one device, whose updates are left at the global model in one of them (zero-out neighbours; Kairouz et al.,
2021, "Practical and private (deep) learning without sampling or shuffling"). How many devices take part in a round is
therefore known to everybody.

Devices choose themselves when they send, and whoever knows when one sent knows the rounds that it is in: nothing is
gained by sampling here, and every round counts in full (q = 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from flead.errors import BadUpdate, BudgetSpent
from flead.network import Vector


class Privacy(BaseModel):
    """How much a global model may tell about one device."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(default=False, description="whether rounds are clipped and noised")
    clip: float = Field(
        0.5, gt=0, le=1e6, description="the furthest that one device pulls, Euclidean norm of its update"
    )
    noise_multiplier: float = Field(1.0, ge=1e-3, le=1e6, description="standard deviation of the noise, in clips")
    delta: float = Field(1e-5, gt=0, lt=1, description="the chance that epsilon does not hold; far below 1 / devices")
    max_epsilon: float | None = Field(
        None, gt=0, description="no round is made that would pass it; null: only reported"
    )


@dataclass(frozen=True, slots=True)
class Spent:
    """What rounds have told about any one device, at worst.

    Attributes
    ----------
    epsilon_round: of one round with the present noise
    epsilon_total: of all rounds together, each with the noise it had; 0 before the first
    delta: the same for both
    """

    epsilon_round: float
    epsilon_total: float
    delta: float
    rounds: int


def private_mean(models: Vector, previous: Vector, privacy: Privacy, rng: np.random.Generator) -> Vector:
    """The next global model: the mean of clipped updates, and Gaussian noise (DP-FedAvg).

    Every device counts the same, however much it learned from: a weight by samples would tell how many they were.
    Noise of standard deviation `noise_multiplier * clip / devices` is added to each parameter.

    Parameters
    ----------
    models:
        (devices, parameters), one device each: a sum over several cannot be clipped for each of them
    previous:
        (parameters,), what updates are differences from; it must not depend on this round's models
    rng:
        whoever knows its state can take the noise away: seed it from the operating system

    Returns
    -------
    (parameters,)

    Raises
    ------
    BadUpdate
        where the shapes do not fit, or a number is not finite

    Notes
    -----
    Source: McMahan et al., 2018, "Learning differentially private recurrent language models".

    >>> rng = np.random.default_rng(0)
    >>> quiet = Privacy(clip=1.0, noise_multiplier=1e-3)
    >>> private_mean(np.array([[3.0, 4.0], [0.0, 0.0]]), np.zeros(2), quiet, rng).round(2)
    array([0.3, 0.4])
    """
    steps = clipped(models, previous, privacy.clip)
    noise = rng.normal(0.0, privacy.noise_multiplier * privacy.clip / len(steps), previous.size)
    mean: Vector = previous + steps.mean(axis=0) + noise
    return mean


def clipped(models: Vector, previous: Vector, clip: float) -> Vector:
    """The updates, (devices, parameters), those longer than `clip` cut to that length; raises `BadUpdate`."""
    models, previous = np.asarray(models, dtype=np.float64), np.asarray(previous, dtype=np.float64)
    if previous.ndim != 1 or models.ndim != 2 or models.shape[1] != previous.size or not len(models):
        raise BadUpdate(f"models of shape {models.shape} are no updates of a model of shape {previous.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        steps: Vector = models - previous
    largest = np.abs(steps).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        raise BadUpdate("an update is not finite: leave it out before the mean is taken")
    # Norms in two parts: the squares of huge numbers are no longer finite.
    unit = np.where(largest > 0, largest, 1.0)
    steps /= unit[:, None]
    norms = np.sqrt(np.einsum("ij,ij->i", steps, steps))
    steps *= np.minimum(unit, clip / np.maximum(norms, 1e-300))[:, None]
    return steps


class Accountant:
    """Adds up what rounds tell about a device.

    n rounds of Gaussian noise z_1 ... z_n tell as much as one of noise (sum of z_i^-2)^(-1/2), however a round depends
    on those before it (Dong, Roth and Su, 2022, "Gaussian differential privacy", corollary 3.3). The epsilon of that
    one is known exactly (Balle and Wang, 2018, "Improving the Gaussian mechanism"); Google's `dp_accounting` gives it.

    Parameters
    ----------
    history:
        the noise multiplier and the number of rounds made with it, as they are stored: a restart goes on

    >>> accountant = Accountant(Privacy(noise_multiplier=4.0, max_epsilon=1.8), [(4.0, 2)])
    >>> round(accountant.spent().epsilon_total, 2)
    1.36
    >>> accountant.rounds_left()
    1
    >>> accountant.spend().rounds
    3
    >>> accountant.spend()
    Traceback (most recent call last):
    flead.errors.BudgetSpent: round 4 would bring epsilon to 1.99, and max_epsilon is 1.8: raise it, or keep the model
    """

    def __init__(self, privacy: Privacy, history: Iterable[tuple[float, int]] = ()) -> None:
        self.privacy = privacy
        self._rounds = 0
        self._told = 0.0
        """The sum of z^-2 over all rounds."""
        for multiplier, count in history:
            self._rounds += count
            self._told += count / multiplier**2

    def spent(self) -> Spent:
        """What was told so far."""
        one = epsilon_of(self.privacy.noise_multiplier, self.privacy.delta)
        return Spent(one, self._epsilon(self._told), self.privacy.delta, self._rounds)

    def check(self) -> None:
        """Return where a round may be made; raises `BudgetSpent` where it would pass `max_epsilon`."""
        limit, after = self.privacy.max_epsilon, self._epsilon(self._told + self.privacy.noise_multiplier**-2)
        if limit is not None and after > limit:
            raise BudgetSpent(
                f"round {self._rounds + 1} would bring epsilon to {after:.3g}, and max_epsilon is {limit:g}: "
                "raise it, or keep the model"
            )

    def spend(self) -> Spent:
        """Count a round; raises `BudgetSpent`, and counts nothing, where it would pass `max_epsilon`."""
        self.check()
        self._rounds += 1
        self._told += self.privacy.noise_multiplier**-2
        return self.spent()

    def rounds_left(self) -> int | None:
        """How many rounds of the present noise fit below `max_epsilon`; None where there is no limit."""
        limit = self.privacy.max_epsilon
        if limit is None:
            return None
        room = noise_multiplier_for(limit, self.privacy.delta) ** -2 - self._told
        left = int(max(0.0, room * self.privacy.noise_multiplier**2))
        # What rounding does to the last round: `check` decides.
        return left + (self._epsilon(self._told + (left + 1) * self.privacy.noise_multiplier**-2) <= limit)

    def _epsilon(self, told: float) -> float:
        return epsilon_of(1.0 / sqrt(told), self.privacy.delta) if told > 0 else 0.0


def epsilon_of(noise_multiplier: float, delta: float) -> float:
    """Epsilon of one round.

    >>> round(epsilon_of(1.0, 1e-5), 4)
    4.3772
    """
    from dp_accounting import get_epsilon_gaussian  # takes a second, and most runs need none

    with np.errstate(divide="ignore"):  # where both tails round to the same number
        return float(get_epsilon_gaussian(noise_multiplier, delta))


def noise_multiplier_for(epsilon: float, delta: float, rounds: int = 1) -> float:
    """The least noise with which so many rounds stay within epsilon.

    >>> noise = noise_multiplier_for(8.0, 1e-5, rounds=48)
    >>> round(noise, 3), round(Accountant(Privacy(), [(noise, 48)]).spent().epsilon_total, 9)
    (4.159, 8.0)
    """
    from dp_accounting import get_sigma_gaussian

    return sqrt(rounds) * float(get_sigma_gaussian(epsilon, delta))
