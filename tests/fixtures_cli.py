"""The `flead` command as a test calls it: in this process, in a run folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.child import free_port
from orchestration.cli import main


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Flead = Callable[..., Ended]


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of its own that no run has used, and ports on which no broker and no database listen."""
    monkeypatch.setenv("FLEAD_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FLEAD_KAFKA__PORT", str(free_port()))
    monkeypatch.setenv("FLEAD_MONGODB__PORT", str(free_port()))
    return tmp_path / "run"


@pytest.fixture
def flead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Flead:
    """The command, without a process of its own."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["flead", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Ended(int(ended.value.code or 0), shown.out, shown.err)

    return run
