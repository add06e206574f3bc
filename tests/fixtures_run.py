"""A whole run of `flead up` for the tests: real servers on free ports, in a temporary folder, once per session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from config.child import free_port
from config.settings import PROJECT
from tests.fixtures_kafka import JARS
from tests.fixtures_storage import wait_until

PORTS = (
    "KAFKA__PORT", "KAFKA__CONTROLLER_PORT", "MONGODB__PORT", "FLINK__REST_PORT", "FLINK__RPC_PORT", "SERVER__PORT",
    "MART__PORT", "DASHBOARDS__PORT",
)  # fmt: skip


@dataclass
class LiveRun:
    """A running `flead up` as somebody in another terminal sees it."""

    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    seen: list[int] = field(default_factory=list)

    def port(self, name: str) -> int:
        return int(self.environment[f"FLEAD_{name}"])

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self.port('KAFKA__PORT')}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port('SERVER__PORT')}"

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            found = {"counts": {}, "services": {}, "lag": {}, "state": "starting", "job": {}}
        self.seen += [s["pid"] for s in found["services"].values() if s["pid"] and s["pid"] not in self.seen]
        return found

    def count(self, name: str) -> int:
        return int(self.status()["counts"].get(name) or 0)

    def wait(self, condition: Any, limit_s: float = 60.0) -> None:
        """Wait until a condition on the status holds; fails at once where the run has ended."""

        def holds() -> bool:
            assert self.process.poll() is None, (self.folder / "up.log").read_text()[-2_000:]
            return bool(condition(self.status()))

        wait_until(holds, limit_s)

    def flead(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return flead(*arguments, environment=self.environment)


def flead(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "orchestration", *arguments],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def run_environment(folder: Path) -> dict[str, str]:
    ports: set[int] = set()
    while len(ports) < len(PORTS):
        ports.add(free_port())
    chosen = {f"FLEAD_{name}": str(port) for name, port in zip(PORTS, ports, strict=True)}
    return {**os.environ, **chosen, "FLEAD_RUN_DIR": str(folder)}


def start(folder: Path, environment: dict[str, str], *arguments: str) -> LiveRun:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.log").open("wb") as log:
        command = [sys.executable, "-m", "orchestration", "up", *arguments]
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log)  # noqa: S603
    return LiveRun(folder, environment, process)


def end(run: LiveRun) -> int:
    """Interrupt a run as Ctrl-C does, and wait for its end."""
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
    try:
        return run.process.wait(150)
    finally:
        run.process.kill()


def left_over(run: LiveRun) -> list[int]:
    """Processes of a run that are still there."""
    return [pid for pid in run.seen if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


@pytest.fixture(scope="session")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    """A run on the simulator at 300 readings/s, once its first round has been made."""
    if not any((JARS.parent / "flink").glob("*.jar")):
        pytest.skip(f"no JVM parts in {JARS.parent}: orchestration/run_all.sh fetches them")
    folder = tmp_path_factory.mktemp("run")
    run = start(folder, run_environment(folder), "--rate", "300", "--devices", "20", "--loop")
    try:
        run.wait(lambda status: status["counts"].get("rounds", 0) >= 1, 150.0)
        yield run
    finally:
        end(run)
