"""Giving a new global model to a few devices first, and judging it by their errors. Pure arithmetic.

A device's error is compared with its own before, so that a device in a difficult place counts like any other; and the
change of the canaries with that of the others meanwhile, so that a storm, which all of them feel, is not the model's
fault (difference in differences: Card and Krueger, 1994).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from flead.network import Vector

LEAST_LOSS = 1e-9
"""Below it a loss counts as this much: the logarithm of nothing says nothing."""
USUAL_SPREAD = 0.2
"""Standard deviation of a loss's logarithm between two updates of 100 readings, where too few devices show it."""
LEAST_SPREAD = 0.05
CERTAINTY = 2.0
"""Standard errors by which a rise must pass the tolerance: of 40 good versions about one is taken back for nothing."""
MANY = 10
"""With fewer canaries a sunrise at one of them looks like a bad model: a rise is looked at twice."""
FEWEST_CONTROLS = 3
"""Other devices that are needed to tell what changed for everybody."""


class Rollout(BaseModel):
    """How a new global model reaches its devices."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(0.1, ge=0, le=0.5, description="of the devices that get a new model first; 0: all at once")
    min_devices: int = Field(10, ge=2, description="devices that report their error; with fewer, all get it at once")
    tolerance: float = Field(0.1, gt=0, description="by how much canaries' errors may rise against the others'")
    limit_s: float = Field(21_600.0, gt=0, description="after so long it is judged by who has reported, s")
    automatic: bool = Field(True, description="judged by itself; false: it waits for an operator")  # noqa: FBT003


class Verdict(StrEnum):
    """What is to become of a canary."""

    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and what it rests on.

    Attributes
    ----------
    rise: by how much the canaries' errors rose against the others', as a share; None where nothing is known
    canaries, controls: devices that reported since
    """

    verdict: Verdict
    why: str
    rise: float | None
    canaries: int
    controls: int


def place(device_id: str, cohort: str, version: int) -> float:
    """Where a device stands among all for this version, in [0, 1): other devices go first each time.

    >>> round(place("mote-1", "light", 7), 3), round(place("mote-1", "light", 8), 3)
    (0.521, 0.846)
    """
    digest = hashlib.sha256(f"{cohort}\0{version}\0{device_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_canary(device_id: str, cohort: str, version: int, share: float) -> bool:
    """Whether a device is among those that get this version first."""
    return place(device_id, cohort, version) < share


def share_for(devices: Iterable[str], cohort: str, version: int, share: float) -> float:
    """The share by which `is_canary` picks this share of these devices, at least one and never all.

    >>> names = [f"d{i}" for i in range(20)]
    >>> exact = share_for(names, "light", 7, 0.1)
    >>> sum(is_canary(name, "light", 7, exact) for name in names)
    2
    """
    places = sorted(place(name, cohort, version) for name in devices)
    if len(places) < 2:
        return share
    picked = min(max(1, round(share * len(places))), len(places) - 1)
    return 0.5 * (places[picked - 1] + places[picked])


def judge(
    canaries: Sequence[tuple[float, float]], controls: Sequence[tuple[float, float]], expected: int, rollout: Rollout,
    *, overdue: bool, looks: int = 2,
) -> Judgement:  # fmt: skip
    """Judge a canary by (error before, error since) of each device that reported since.

    Parameters
    ----------
    expected:
        canaries that there are
    overdue:
        whether its time is over
    looks:
        how often each of the canaries that reported has

    >>> steady, worse = [(1.0, 1.0)] * 9, [(1.0, 1.6), (2.0, 3.0)]
    >>> judge(worse, steady, 2, Rollout(), overdue=False).verdict.value
    'roll_back'
    >>> judge(steady[:2], steady, 2, Rollout(), overdue=False).why
    'their errors rose by 0 % against those of 9 others'
    >>> judge(worse, steady, 2, Rollout(), overdue=False, looks=1).verdict.value
    'wait'
    """
    rise, spread = _rise(canaries, controls)
    found = (None if rise is None else math.expm1(rise), len(canaries), len(controls))
    enough = len(canaries) >= min(expected, max(2, math.ceil(expected / 2))) and len(controls) >= min(
        FEWEST_CONTROLS, 2 * expected
    )
    if not overdue and not enough:
        return Judgement(Verdict.WAIT, f"{len(canaries)} of {expected} canaries have reported", *found)
    if rise is None:
        return Judgement(Verdict.ROLL_BACK, "no canary reported in time", *found)
    why = f"their errors rose by {100 * math.expm1(rise):.0f} % against those of {len(controls)} others"
    worse = rise > math.log1p(rollout.tolerance) + CERTAINTY * spread
    if not worse and rise > math.log1p(rollout.tolerance):
        why += ", which is no more than errors scatter by at the moment"
    if worse and looks < 2 and len(canaries) < MANY and not overdue:
        return Judgement(Verdict.WAIT, f"{why}: they are looked at once more", *found)
    return Judgement(Verdict.ROLL_BACK if worse else Verdict.PROMOTE, why, *found)


def _rise(
    canaries: Sequence[tuple[float, float]], controls: Sequence[tuple[float, float]]
) -> tuple[float | None, float]:
    """The logarithm of the canaries' rise over the others', and its standard error."""
    if not canaries:
        return None, 0.0
    theirs, others = _logarithms(canaries), _logarithms(controls)
    rise = float(np.median(theirs)) - (float(np.median(others)) if others.size else 0.0)
    spread = USUAL_SPREAD
    if others.size >= FEWEST_CONTROLS:  # 2.563: of a normal distribution, the middle 80 % in standard deviations
        low, high = np.quantile(others, (0.1, 0.9))
        spread = max(float(high - low) / 2.563, LEAST_SPREAD)
    return rise, spread * math.sqrt(1.0 / theirs.size + (1.0 / others.size if others.size else 0.0))


def _logarithms(pairs: Sequence[tuple[float, float]]) -> Vector:
    """log(since / before) of each."""
    kept = np.maximum(np.asarray(pairs, dtype=np.float64).reshape(-1, 2), LEAST_LOSS)
    found: Vector = np.log(kept[:, 1] / kept[:, 0])
    return found
