"""What the page shows of versions and of quarantine: from what the global server holds to rows of text and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from flead.defence import Reputation
from flead.messages import Stage
from visualization.console import words

SHOWN = 10
"""The newest versions of a cohort that the table has."""
KEPT_OUT = 100
"""The devices in quarantine that are listed, newest first."""


class Difference(Protocol):
    """How one version differs from another; `global_server.versions.Difference` is one."""

    @property
    def distance(self) -> float:
        """Euclidean, over all parameters."""

    @property
    def relative(self) -> float:
        """The same as a share of the first one's norm."""

    @property
    def cosine(self) -> float:
        """Of the angle between the two."""

    @property
    def layers(self) -> Sequence[float]:
        """The distance by layer."""


class Versions(Protocol):
    """What is asked about versions; `global_server.versions.Versions` is one."""

    def trial(self, cohort: str, now: datetime) -> dict[str, Any] | None:
        """How the trial of a canary goes; None where there is none."""

    def compare(self, cohort: str, a: int, b: int) -> Difference:
        """How version b differs from version a; raises `NotThere`, `Unavailable`."""


class Kept(Protocol):
    """What is thought of a device; `storage.rounds.Trust` is one."""

    @property
    def device_id(self) -> str:
        """The device."""

    @property
    def cohort(self) -> str:
        """Its cohort."""

    @property
    def good(self) -> float:
        """Of its reputation, a Beta distribution."""

    @property
    def bad(self) -> float:
        """Of its reputation, a Beta distribution."""

    @property
    def state(self) -> str:
        """`quarantined` or `rejected`."""

    @property
    def reason(self) -> str | None:
        """What was held against it last."""

    @property
    def changed_at(self) -> datetime:
        """Since when."""

    @property
    def decided_by(self) -> str | None:
        """Who decided; None: the defence."""


class Quarantine(Protocol):
    """What is asked about quarantine; `global_server.quarantine.Quarantine` is one."""

    def list(self) -> Sequence[Kept]:
        """The devices that are kept out, newest first; raises `Unavailable`."""


def versions_shown(
    found: Sequence[Mapping[str, Any]], stable: int | None, on_trial: int | None
) -> list[dict[str, Any]]:
    """The newest versions, newest first, and the stable one wherever it is.

    Parameters
    ----------
    found:
        rounds as they are stored, oldest first
    stable, on_trial:
        the versions that are
    """
    chosen = [one for at, one in enumerate(reversed(found)) if at < SHOWN or one["round"] == stable]
    return [_version(one, stable, on_trial) for one in chosen]


def _version(found: Mapping[str, Any], stable: int | None, on_trial: int | None) -> dict[str, Any]:
    metrics = found.get("metrics") or {}
    decided_at = found.get("decided_at")
    return {
        "version": found["round"],
        "at": found["timestamp"].timestamp(),
        "stage": _stage(found, stable, on_trial),
        "parent": found.get("parent"),
        "devices": found["num_devices"],
        "samples": found["total_samples"],
        "strategy": found.get("aggregation_strategy"),
        "loss": metrics.get("loss"),
        "rise": metrics.get("rise"),
        "epsilon": metrics.get("epsilon_total"),
        "left_out": int(metrics.get("left_out", 0)),
        "decision": words.decision(found.get("stage"), found.get("verdict"), found.get("decided_by")),
        "decided_at": decided_at.timestamp() if decided_at else None,
    }


def _stage(found: Mapping[str, Any], stable: int | None, on_trial: int | None) -> str:
    if found["round"] == stable:
        return "stable"
    if found["round"] == on_trial:
        return "on trial"
    return "rolled back" if found.get("stage") == Stage.ROLLED_BACK else "was stable"


def trial_shown(trial: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A trial as the page has it."""
    if trial is None:
        return None
    times = {name: trial[name].timestamp() for name in ("since", "until")}
    return {**trial, **times, "waits": words.waits_for(trial)}


def quarantine_shown(kept: Sequence[Kept]) -> dict[str, Any]:
    """Who is kept out, and how many in all."""
    return {
        "count": len(kept),
        "devices": [
            {
                "device": one.device_id,
                "cohort": one.cohort,
                "for_good": one.state == "rejected",
                "reason": one.reason,
                "since": one.changed_at.timestamp(),
                "reputation": Reputation(one.good, one.bad).value,
                "who": one.decided_by,
            }
            for one in kept[:KEPT_OUT]
        ],
    }


def difference_shown(cohort: str, a: int, b: int, found: Difference) -> dict[str, Any]:
    """A comparison as the page has it."""
    same = {"distance": found.distance, "relative": found.relative, "cosine": found.cosine}
    return {"cohort": cohort, "a": a, "b": b, **same, "layers": list(found.layers)}
