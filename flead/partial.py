"""Partial sums: many devices' updates as one, so that a fleet is merged where it is and not in one process.

FedAvg is a weighted mean, and a weighted mean of weighted means, each with the weight of its parts, is the mean of all.
So a shard of the stream or an edge aggregator may stand for its devices: it sends their weighted mean and the sum of
their samples. Only strategies that are linear in the updates may be given these; a median of means is not a median.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike

from flead import network
from flead.errors import BadUpdate
from flead.network import Architecture, Vector
from flead.updates import ReadUpdate

MOST_SAMPLES = 1_000_000_000
"""That one update may stand for, see `LocalUpdate.sample_count`."""


@dataclass(frozen=True)
class PartialSum:
    """A sum over devices from which their weighted mean follows.

    Attributes
    ----------
    weighted:
        (parameters,), the sum of samples times parameters
    samples:
        the sum of the devices' samples
    devices:
        how many

    >>> here = PartialSum.of([[1.0, 2.0]], [2])
    >>> there = PartialSum.of([[4.0, 8.0], [0.0, 0.0]], [1, 3])
    >>> (here + there).mean, (here + there).devices
    (array([1., 2.]), 3)
    """

    weighted: Vector
    samples: int
    devices: int

    @classmethod
    def empty(cls, parameters: int) -> PartialSum:
        """The sum over no device."""
        return cls(np.zeros(parameters), 0, 0)

    @classmethod
    def of(cls, models: ArrayLike, samples: ArrayLike, devices: int | None = None) -> PartialSum:
        """Sum up devices.

        Parameters
        ----------
        models:
            (k, parameters)
        samples:
            (k,), whole numbers
        devices:
            how many the models stand for where they are means themselves; without it, k

        Raises
        ------
        BadUpdate
            where shapes do not fit, a number is not finite, a count is negative
        """
        stacked, counts = np.asarray(models, dtype=np.float64), np.asarray(samples, dtype=np.int64)
        if stacked.ndim != 2 or counts.shape != stacked.shape[:1]:
            raise BadUpdate(
                f"models must be (k, parameters) and samples (k,): they are {stacked.shape}, {counts.shape}"
            )
        if (counts < 0).any():
            raise BadUpdate("a sample count is negative")
        with np.errstate(over="ignore", invalid="ignore"):
            weighted = counts.astype(np.float64) @ stacked
        if not np.isfinite(weighted).all():
            raise BadUpdate("a parameter is not a finite number, or too large to be summed up")
        return cls(weighted, int(counts.sum()), len(counts) if devices is None else devices)

    def add(self, theta: Vector, samples: int, devices: int = 1) -> PartialSum:
        """One more device, or one more mean of so many devices; `theta` is (parameters,)."""
        return self + PartialSum.of(theta[None], [samples], devices)

    def __add__(self, other: PartialSum) -> PartialSum:
        if self.weighted.shape != other.weighted.shape:
            raise BadUpdate(f"sums of {self.weighted.size} and {other.weighted.size} parameters cannot be added")
        return PartialSum(self.weighted + other.weighted, self.samples + other.samples, self.devices + other.devices)

    @property
    def mean(self) -> Vector:
        """The devices' mean weighted by samples, (parameters,); raises `BadUpdate` where there are no samples."""
        if not self.samples:
            raise BadUpdate("all sample counts are zero: there is nothing to weigh by")
        weighted: Vector = self.weighted / self.samples
        return weighted


_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Part:
    """What one sender has given since it last went into a partial sum: its latest weights, the samples of all.

    Attributes
    ----------
    theta:
        (parameters,)
    timestamp:
        of its newest update, aware
    samples_seen, base_version:
        its training counter and the global model that it began from; None where it did not say
    sensors:
        the names its inputs are made of, sorted; None where it did not say
    loss:
        its own mean error with that global model (`metadata.loss`), None where it did not say
    devices:
        how many devices it stands for: 1, or more where it sends means of others
    """

    device_id: str
    cohort: str
    theta: Vector
    architecture: Architecture
    samples: int
    timestamp: datetime
    samples_seen: int | None = None
    base_version: int | None = None
    sensors: tuple[str, ...] | None = None
    loss: float | None = None
    devices: int = 1

    @classmethod
    def from_update(cls, update: ReadUpdate) -> Part:
        """Take from an update what a sum needs."""
        return cls(
            device_id=update.device_id,
            cohort=update.cohort,
            theta=update.theta,
            architecture=update.architecture,
            samples=update.sample_count,
            timestamp=update.timestamp,
            samples_seen=update.samples_seen,
            base_version=update.base_version,
            sensors=update.sensors,
            loss=update.loss,
            devices=update.devices,
        )

    def then(self, other: Part) -> Part:
        """The same sender's updates together.

        A device's weights with more training behind them stay, as they contain the others. A mean of many devices
        contains no other: their weighted mean is taken, and a device that is in both counts twice.
        """
        newer, older = (other, self) if _order(other) >= _order(self) else (self, other)
        both = replace(newer, samples=min(self.samples + other.samples, MOST_SAMPLES))
        if self.devices == other.devices == 1:
            return both
        summed = PartialSum.of([self.theta, other.theta], [self.samples, other.samples])
        return replace(
            both,
            theta=summed.mean,
            base_version=_lowest((newer.base_version, older.base_version)),
            devices=self.devices + other.devices,
        )

    def to_bytes(self) -> bytes:
        """All of it: names and counters as JSON, then the parameters as little-endian float64."""
        said = [
            self.device_id, self.cohort, self.architecture.as_dict(), self.samples, self.timestamp.isoformat(),
            self.samples_seen, self.base_version, self.sensors, self.loss, self.devices,
        ]  # fmt: skip
        header = orjson.dumps(said)
        return b"".join((_LENGTH.pack(len(header)), header, self.theta.astype("<f8").tobytes()))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Part:
        """Read `to_bytes`; the parameters are a view into it and cannot be written."""
        (length,) = _LENGTH.unpack_from(raw)
        end = _LENGTH.size + length
        device_id, cohort, sizes, samples, timestamp, seen, base, sensors, loss, devices = orjson.loads(
            raw[_LENGTH.size : end]
        )
        architecture = Architecture(
            sizes["input_size"], tuple(sizes["hidden_sizes"]), sizes["output_size"], sizes.get("skip", False)
        )
        theta: Vector = np.frombuffer(raw, dtype="<f8", offset=end)
        named = None if sensors is None else tuple(sensors)
        time = datetime.fromisoformat(timestamp)
        return cls(device_id, cohort, theta, architecture, samples, time, seen, base, named, loss, devices)


def shard_of(device_id: str, shards: int) -> int:
    """The shard that sums up a device.

    >>> shard_of("mote-7", 4)
    3
    """
    return zlib.crc32(device_id.encode()) % shards


def sum_of(parts: Iterable[Part]) -> PartialSum:
    """Sum up parts of one architecture; there must be one."""
    listed = list(parts)
    models = np.stack([part.theta for part in listed])
    return PartialSum.of(models, [part.samples for part in listed], sum(part.devices for part in listed))


def partial_updates(
    parts: Iterable[Part], *, device_id: str, timestamp: datetime, samples_before: int
) -> list[dict[str, Any]]:
    """The updates that stand for all parts, as they travel: one for each global model that devices began from.

    A round may still refuse what began from a model that was taken back, and compare devices' errors by model. More
    samples than `MOST_SAMPLES` go in several updates.

    Parameters
    ----------
    parts:
        of one cohort and architecture
    device_id:
        of who sums up: always the same, and its own for each cohort. An update that stands for one device says which,
        hashed: of two from one sender a round takes the second for the first one's device, with more training
    timestamp:
        of the first, aware, later than that of all it has sent; the others follow by a microsecond each
    samples_before:
        what it has sent so far, so that its training counter never goes down

    Returns
    -------
    oldest global model first
    """
    by_version: dict[int, list[Part]] = {}
    for part in parts:
        by_version.setdefault(-1 if part.base_version is None else part.base_version, []).append(part)
    updates: list[dict[str, Any]] = []
    for _, alike in sorted(by_version.items()):
        for some in _that_fit(alike):
            time = timestamp + timedelta(microseconds=len(updates))
            sender = device_id
            if len(some) == 1 and some[0].devices == 1:
                sender = f"{device_id}-{_hashed(some[0].device_id)}"
            updates.append(_partial_update(some, sender, time, samples_before))
            samples_before = updates[-1]["metadata"]["samples_seen"]
    return updates


def _that_fit(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Runs of parts whose samples one update may stand for."""
    run: list[Part] = []
    samples = 0
    for part in parts:
        if run and samples + part.samples > MOST_SAMPLES:
            yield run
            run, samples = [], 0
        run.append(part)
        samples += part.samples
    yield run


def _partial_update(parts: Sequence[Part], device_id: str, timestamp: datetime, samples_before: int) -> dict[str, Any]:
    """One update for parts of one global model."""
    summed, first = sum_of(parts), parts[0]
    metadata = {
        "cohort": first.cohort,
        "devices": summed.devices,
        "samples_seen": samples_before + summed.samples,
        "sensors": next((list(part.sensors) for part in parts if part.sensors), None),
        "base_version": first.base_version,
        "loss": _mean_loss(parts),
    }
    return {
        "device_id": device_id,
        "weights": network.to_message(summed.mean, first.architecture),
        "sample_count": summed.samples,
        "timestamp": timestamp.isoformat(),
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }


def _mean_loss(parts: Sequence[Part]) -> float | None:
    """The devices' mean loss, of those that said one."""
    said = [(part.loss, part.devices) for part in parts if part.loss is not None]
    return sum(loss * devices for loss, devices in said) / sum(devices for _, devices in said) if said else None


def sender_name(name: str, cohort: str, architecture: Architecture) -> str:
    """The device id under which sums of a cohort travel: counters are kept by device id, so each sum needs its own.

    >>> sender_name("partial-3", "humidity+temperature", Architecture(4, (16,), 4))
    'partial-3-a8aaea404e6ad8eb'
    """
    return f"{name}-{_hashed(f'{cohort}|{architecture}')}"


def _hashed(text: str) -> str:
    """Sixteen digits that nobody finds another text for: two cohorts under one name could not be summed up."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _order(part: Part) -> tuple[int, datetime]:
    return part.samples_seen or 0, part.timestamp


def _lowest(versions: Iterable[int | None]) -> int | None:
    return min((version for version in versions if version is not None), default=None)
