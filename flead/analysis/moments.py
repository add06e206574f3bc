"""Means, variances and covariances that add up exactly over parts.

Source: Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of n columns, taken over rows without a NaN in the column.

    Attributes
    ----------
    count, mean, m2, low, high:
        (n,); `m2` is the sum of squared distances from the mean, `low` and `high` the extremes; NaN where count is 0

    >>> a, b = Moments.of(np.array([[1.0], [2.0]])), Moments.of(np.array([[6.0], [np.nan]]))
    >>> (a + b).mean, (a + b).sd.round(3)
    (array([3.]), array([2.646]))
    """

    count: Vector
    mean: Vector
    m2: Vector
    low: Vector
    high: Vector

    @classmethod
    def of(cls, values: Vector) -> Self:
        """Of (m, n) values."""
        known = np.isfinite(values)
        count = known.sum(axis=0).astype(np.float64)
        some = np.where(count > 0, count, np.nan)
        mean = np.where(known, values, 0.0).sum(axis=0) / some
        off = np.where(known, values - mean, 0.0)
        low, high = np.where(known, values, np.inf), np.where(known, values, -np.inf)
        return cls(
            count,
            mean,
            np.where(count > 0, (off * off).sum(axis=0), np.nan),
            np.where(count > 0, low.min(axis=0, initial=np.inf), np.nan),
            np.where(count > 0, high.max(axis=0, initial=-np.inf), np.nan),
        )

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        count = self.count + other.count
        some = np.where(count > 0, count, np.nan)
        a, b = np.nan_to_num(self.mean), np.nan_to_num(other.mean)
        mean = (self.count * a + other.count * b) / some
        between = (b - a) ** 2 * self.count * other.count / some
        m2 = np.nan_to_num(self.m2) + np.nan_to_num(other.m2) + between
        return Moments(count, mean, m2, np.fmin(self.low, other.low), np.fmax(self.high, other.high))

    @property
    def sd(self) -> Vector:
        """The sample standard deviation, (n,); NaN for fewer than two values."""
        found: Vector = np.sqrt(self.m2 / np.where(self.count > 1, self.count - 1, np.nan))
        return found

    def as_lists(self) -> dict[str, list[float | None]]:
        """As they are stored; None for NaN."""
        return {name: plain(getattr(self, name)) for name in ("count", "mean", "m2", "low", "high")}

    @classmethod
    def from_lists(cls, stored: dict[str, Any]) -> Self:
        """From `as_lists`."""
        return cls(*(arrays(stored[name]) for name in ("count", "mean", "m2", "low", "high")))


@dataclass(frozen=True)
class Comoments:
    """Of each pair of n columns, over the rows in which both are known.

    Attributes
    ----------
    count, mean, comoment:
        (n, n): rows; the mean of the FIRST of the pair over these rows; the sum of products of distances from the means
    spread:
        (n, n): the sum of squared distances of the FIRST of the pair over these rows
    """

    count: Vector
    mean: Vector
    spread: Vector
    comoment: Vector

    @classmethod
    def of(cls, values: Vector) -> Self:
        """Of (m, n) values."""
        known = np.isfinite(values)
        # About the columns' means: sums of raw products would cancel where a level is far above its noise.
        count_each = known.sum(axis=0)
        centre = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count_each, 1)
        x, k = np.where(known, values - centre, 0.0), known.astype(np.float64)
        count = k.T @ k
        some = np.maximum(count, 1.0)
        first, squares, products = x.T @ k, (x * x).T @ k, x.T @ x
        mean = first / some
        return cls(
            count, mean + centre[:, None], np.maximum(squares - count * mean**2, 0.0), products - count * mean * mean.T
        )

    def __add__(self, other: Comoments) -> Comoments:
        """Of the rows of both."""
        count = self.count + other.count
        some = np.maximum(count, 1.0)
        weight = self.count * other.count / some
        off = other.mean - self.mean
        return Comoments(
            count,
            (self.count * self.mean + other.count * other.mean) / some,
            self.spread + other.spread + weight * off**2,
            self.comoment + other.comoment + weight * off * off.T,
        )

    @property
    def correlation(self) -> Vector:
        """Pearson's, (n, n); NaN where one of a pair does not vary, or fewer than three rows know both.

        >>> x = np.arange(5.0)
        >>> Comoments.of(np.column_stack((x, -x, x * 0))).correlation.round(6)[0]
        array([ 1., -1., nan])
        """
        scale = np.sqrt(self.spread * self.spread.T)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Vector = np.where((self.count > 2) & (scale > 0), self.comoment / scale, np.nan)
        return np.clip(found, -1.0, 1.0)

    def as_lists(self) -> dict[str, list[Any]]:
        """As they are stored."""
        return {name: getattr(self, name).tolist() for name in ("count", "mean", "spread", "comoment")}

    @classmethod
    def from_lists(cls, stored: dict[str, Any]) -> Self:
        """From `as_lists`."""
        return cls(*(np.array(stored[name], dtype=np.float64) for name in ("count", "mean", "spread", "comoment")))


def plain(values: Vector) -> list[Any]:
    """Numbers as JSON knows them: None for what is not finite.

    >>> plain(np.array([1.0, np.nan]))
    [1.0, None]
    """
    listed: list[Any] = [float(v) if np.isfinite(v) else None for v in values]
    return listed


def arrays(values: Any) -> Vector:
    """The array of what `plain` gave.

    >>> arrays([1.0, None])
    array([ 1., nan])
    """
    return np.array(values, dtype=np.float64)
