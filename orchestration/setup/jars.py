"""Fetches the JVM parts that `ivy.xml` names, with the Ivy that PySpark ships, and checks every one.

They land in `.jvm/jars` only when all are there and right; what was fetched before a failure is kept and not fetched
again. `python -m orchestration.setup.jars --record` writes `jars.sha256` anew after a change of `ivy.xml`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from pathlib import Path

from config.settings import PROJECT
from flead.errors import FleadError, Unavailable
from orchestration.java import find_java_home

HERE = Path(__file__).parent
CHECKSUMS = HERE / "jars.sha256"
TARGET = PROJECT / ".jvm" / "jars"
CACHE = PROJECT / ".jvm" / "ivy"
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/java/cacerts")


def read_checksums() -> dict[str, str]:
    """The expected files under `.jvm/jars` and their SHA-256."""
    lines = CHECKSUMS.read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines if line)}


def is_complete(target: Path = TARGET) -> bool:
    """Whether everything is there, as recorded when it was last checked."""
    stamp = target / ".complete"
    expected = read_checksums()
    return (
        stamp.exists()
        and stamp.read_text() == _digest(CHECKSUMS)
        and all((target / name).is_file() for name in expected)
    )


def fetch(target: Path = TARGET) -> None:
    """Fetch and check everything.

    Raises
    ------
    Unavailable
        naming what could not be fetched or does not have its checksum
    """
    partial = target.with_name("jars.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _retrieve(partial)
    _check(partial)
    (partial / ".complete").write_text(_digest(CHECKSUMS))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _retrieve(folder: Path) -> None:
    """Run Ivy, showing how many files have come."""
    command = [str(find_java_home() / "bin" / "java"), f"-Duser.home={CACHE}", f"-Divy.home={CACHE}"]
    if SYSTEM_CERTIFICATES.exists():  # a Java from a wheel has a certificate store of its own
        command += [f"-Djavax.net.ssl.trustStore={SYSTEM_CERTIFICATES}"]
    command += ["-jar", str(_ivy()), "-ivy", str(HERE / "ivy.xml"), "-cache", str(CACHE), "-confs"]
    command += ["kafka", "flink", "spark"]
    command += ["-retrieve", str(folder / "[conf]" / "[artifact]-[revision].[ext]")]
    if os.environ.get("FLEAD_IVY_SETTINGS"):  # a mirror
        command += ["-settings", os.environ["FLEAD_IVY_SETTINGS"]]
    total, came = len(read_checksums()), 0
    tail: deque[str] = deque(maxlen=200)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        for line in process.stdout or ():
            tail.append(line.strip())
            if "[SUCCESSFUL ]" in line:
                came += 1
                _show(f"  JVM parts: {came} of {total}")
    _show("")
    if process.returncode or not folder.is_dir():
        wrong = [line for line in tail if re.search(r"UNRESOLVED|FAILED|not found|Exception|timed out|refused", line)]
        raise Unavailable(
            f"the JVM parts could not be fetched ({'; '.join(wrong[:3])[:400] or 'Ivy said nothing of use'}): "
            "look at the network, or name a mirror's Ivy settings in FLEAD_IVY_SETTINGS, and run this again; "
            "what has come is kept"
        )


def _check(folder: Path) -> None:
    expected = read_checksums()
    found = {str(path.relative_to(folder)): _digest(path) for path in folder.rglob("*.jar")}
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    surplus = sorted(found.keys() - expected.keys())
    if wrong or surplus:
        shutil.rmtree(CACHE, ignore_errors=True)  # a broken file in there would come back for ever
        raise Unavailable(
            f"these JVM parts are missing or do not have their checksum: {', '.join(wrong) or 'none'}; these are not "
            f"expected: {', '.join(surplus) or 'none'}. They were thrown away: run this again"
        )


def _ivy() -> Path:
    """The Ivy in PySpark's wheel."""
    return next((Path(sysconfig.get_path("purelib")) / "pyspark" / "jars").glob("ivy-*.jar"))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _show(text: str) -> None:
    """A line that replaces itself on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def _record() -> None:
    folder = TARGET.with_name("jars.partial")
    shutil.rmtree(folder, ignore_errors=True)
    CHECKSUMS.write_text("")
    _retrieve(folder)
    lines = [f"{_digest(path)}  {path.relative_to(folder)}" for path in sorted(folder.rglob("*.jar"))]
    CHECKSUMS.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Fetch unless everything is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write jars.sha256 from what ivy.xml resolves to")
    try:
        if parser.parse_args().record:
            _record()
        if not is_complete():
            fetch()
    except FleadError as error:
        sys.stderr.write(f"flead: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
