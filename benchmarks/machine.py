"""Says in one line what the figures were measured on: `python -m benchmarks.machine`."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from flead.errors import Unavailable
from orchestration.java import find_java_home


def describe() -> str:
    """CPU, cores, memory, system, Python and Java."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {memory:.1f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {_java()}"
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _java() -> str:
    try:
        java = find_java_home() / "bin" / "java"
    except Unavailable:
        return "no Java"
    said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    return f"Java {said.stderr.partition(chr(34))[2].partition(chr(34))[0] or 'unknown'}"


if __name__ == "__main__":
    print(describe())
