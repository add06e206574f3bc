"""Merging many devices' models into one: pure arithmetic on stacked arrays, and the strategies over it.

`updates` is what a round is given and gives back, `averages`, `adaptive` and `robust` are the arithmetic, `strategies`
the typed configurations that a cohort chooses from. Here new strategies are added: a `Rule` with a name of its own, in
`Strategy` and `STRATEGIES`, which the contract suite (tests/test_federation.py) then takes up by itself. Imports the
domain only: no clock, no generator of random numbers, no engine.
"""

from flead.federation.averages import fedavg, shares_of, staleness_weight
from flead.federation.strategies import (
    STRATEGIES,
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    FedYogi,
    GeometricMedian,
    Krum,
    Median,
    MultiKrum,
    Rule,
    Scaffold,
    Strategy,
    TrimmedMean,
    parse_strategy,
)
from flead.federation.updates import Merge, Updates

__all__ = [
    "STRATEGIES",
    "Bulyan",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedProx",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "Median",
    "Merge",
    "MultiKrum",
    "Rule",
    "Scaffold",
    "Strategy",
    "TrimmedMean",
    "Updates",
    "fedavg",
    "parse_strategy",
    "shares_of",
    "staleness_weight",
]
