"""The strategies give what Flower's give; tests/flower/make.py wrote down what those are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flead.federation import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Krum,
    Median,
    MultiKrum,
    Rule,
    TrimmedMean,
    Updates,
)
from flead.network import Vector

FLOWER: dict[str, Any] = json.loads((Path(__file__).parent / "flower" / "figures.json").read_text())
WIDTH = len(FLOWER["start"])

SAME: list[Rule] = [
    FedAvg(),
    FedProx(proximal=0.1),
    FedAvgM(learning_rate=0.8, momentum=0.6),
    FedYogi(learning_rate=0.05, beta1=0.9, beta2=0.99, tau=1e-3),
    FedAdagrad(learning_rate=0.05, beta1=0.0, tau=1e-3),
    Median(),
    TrimmedMean(malicious=0.2),
    Krum(malicious=0.2),
    Bulyan(malicious=0.2),
]


def updates(number: int, previous: Vector, *, equal: bool = False) -> Updates:
    """A round of Flower's."""
    samples = np.ones(len(FLOWER["samples"])) if equal else FLOWER["samples"]
    return Updates(previous + np.array(FLOWER["changes"][number]), samples, previous)


def empty() -> dict[str, Vector]:
    """Flower begins with no squared change, where the paper has tau^2."""
    return {"first": np.zeros(WIDTH), "second": np.zeros(WIDTH)}


@pytest.mark.parametrize("rule", SAME, ids=lambda rule: str(rule.name))
def test_each_gives_what_flowers_gives(rule: Any) -> None:
    theta, state = np.array(FLOWER["start"]), empty()
    for number, expected in enumerate(FLOWER["thetas"][rule.name]):
        merged = rule.merge(updates(number, theta), state)
        np.testing.assert_allclose(merged.theta, expected, rtol=1e-9, atol=1e-12)
        theta, state = merged.theta, merged.state


def test_multi_krum_gives_what_flowers_gives_where_devices_have_equally_many_samples() -> None:
    # Flower weighs those that are kept by their samples, which a device that lies says as it likes; the paper does not.
    theta = np.array(FLOWER["start"])
    for number, expected in enumerate(FLOWER["thetas"]["multi_krum"]):
        theta = MultiKrum(malicious=0.2).merge(updates(number, theta, equal=True)).theta
        np.testing.assert_allclose(theta, expected, rtol=1e-9, atol=1e-12)


def test_fedadam_gives_what_flowers_gives_but_for_the_length_of_its_steps() -> None:
    # Flower lengthens them by Adam's correction for young means, of the next round; the paper's algorithm has none.
    theta, state = np.array(FLOWER["start"]), empty()
    for number, expected in enumerate(FLOWER["thetas"]["fedadam"]):
        corrected = 0.05 * np.sqrt(1 - 0.99 ** (number + 2)) / (1 - 0.9 ** (number + 2))
        rule = FedAdam(learning_rate=corrected, beta1=0.9, beta2=0.99, tau=1e-3)
        merged = rule.merge(updates(number, theta), state)
        np.testing.assert_allclose(merged.theta, expected, rtol=1e-9, atol=1e-12)
        theta, state = merged.theta, merged.state


def test_every_strategy_of_flowers_that_there_is_here_is_compared() -> None:
    assert {*(rule.name for rule in SAME if hasattr(rule, "name")), "multi_krum", "fedadam"} == set(FLOWER["thetas"])
