"""Says in one line what the figures were measured on: `python -m benchmarks.machine`."""

from __future__ import annotations

import os
import subprocess

from flead.errors import Unavailable
from orchestration.evaluating import machine
from orchestration.java import find_java_home


def describe() -> str:
    """CPU, cores, system, Python, memory and Java."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{machine()}, {memory:.1f} GiB, {_java()}"


def _java() -> str:
    try:
        java = find_java_home() / "bin" / "java"
    except Unavailable:
        return "no Java"
    said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    return f"Java {said.stderr.partition(chr(34))[2].partition(chr(34))[0] or 'unknown'}"


if __name__ == "__main__":
    print(describe())
