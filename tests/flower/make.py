"""What Flower's strategies make of three small rounds: writes `figures.json` beside this file.

Needs Flower, which is in none of the project's environments, so it has one of its own:

    python3.11 -m venv /tmp/flower && /tmp/flower/bin/pip install flwr==1.41.0
    /tmp/flower/bin/python tests/flower/make.py
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate_bulyan, aggregate_krum
from flwr.serverapp import strategy as flower
from flwr.supercore.task_identity import TaskIdentity

DEVICES, WIDTH, ROUNDS, MALICIOUS = 15, 7, 3, 3
LAYERS = (slice(0, 4), slice(4, WIDTH))

SERVERS = {
    "fedavg": lambda: flower.FedAvg(),
    "fedprox": lambda: flower.FedProx(proximal_mu=0.1),
    "fedavgm": lambda: flower.FedAvgM(server_learning_rate=0.8, server_momentum=0.6),
    "fedadam": lambda: flower.FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3),
    "fedyogi": lambda: flower.FedYogi(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3),
    "fedadagrad": lambda: flower.FedAdagrad(eta=0.05, tau=1e-3),
    "median": lambda: flower.FedMedian(),
    "trimmed_mean": lambda: flower.FedTrimmedAvg(beta=0.2),
    "krum": lambda: flower.Krum(num_malicious_nodes=MALICIOUS),
    "multi_krum": lambda: flower.MultiKrum(num_malicious_nodes=MALICIOUS, num_nodes_to_select=DEVICES - MALICIOUS),
}


def record(theta: Any) -> ArrayRecord:
    """A model as Flower's arrays."""
    return ArrayRecord({f"layer {i}": Array(theta[layer]) for i, layer in enumerate(LAYERS)})


def theta_of(arrays: ArrayRecord) -> Any:
    """Flower's arrays as a model."""
    return np.concatenate([array.numpy() for array in arrays.values()])


def reply(theta: Any, samples: int) -> Message:
    """What a device answers."""
    content = RecordDict({"arrays": record(theta), "metrics": MetricRecord({"num-examples": samples})})
    return Message(content=content, dst_node_id=1, message_type="train")


def run(name: str, starts: Any, rounds: list[Any], samples: list[int]) -> list[list[float]]:
    """The model after each round."""
    server, theta, found = SERVERS[name](), starts, []
    for number, changes in enumerate(rounds, start=1):
        if name == "fedavgm":
            server.current_arrays = record(theta)
        elif hasattr(server, "current_arrays"):
            server.current_arrays = {key: array.numpy() for key, array in record(theta).items()}
        arrays, _ = server.aggregate_train(number, [reply(theta + c, n) for c, n in zip(changes, samples, strict=True)])
        theta = theta_of(arrays)
        found.append(theta.tolist())
    return found


def bulyan(theta: Any, rounds: list[Any], samples: list[int]) -> list[list[float]]:
    """Bulyan as in the paper, Krum again and again: Flower's function for it.

    Its newer strategy class takes all of the first step from one Multi-Krum instead.
    """
    found = []
    for changes in rounds:
        results = [([(theta + c)[layer] for layer in LAYERS], n) for c, n in zip(changes, samples, strict=True)]
        merged = aggregate_bulyan(results, MALICIOUS, aggregate_krum, to_keep=0)
        theta = np.concatenate(merged)
        found.append(theta.tolist())
    return found


def main() -> None:
    """Compute and write."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # messages want to know where they arise
    rng = np.random.default_rng(20260)
    start = rng.normal(size=WIDTH)
    rounds = [rng.normal(0.3, 0.2, size=(DEVICES, WIDTH)) for _ in range(ROUNDS)]
    for changes in rounds:
        changes[:MALICIOUS] *= -8.0
    samples = rng.integers(20, 400, DEVICES).tolist()
    equal = [100] * DEVICES
    found = {name: run(name, start, rounds, equal if name == "multi_krum" else samples) for name in SERVERS}
    found["bulyan"] = bulyan(start, rounds, samples)
    figures = {
        "flwr": version("flwr"),
        "start": start.tolist(),
        "changes": [changes.tolist() for changes in rounds],
        "samples": samples,
        "thetas": found,
    }
    Path(__file__).with_name("figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
