"""Set-up is done when every JVM part that was recorded is there, and not before."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from orchestration.setup.jars import CHECKSUMS, HERE, TARGET, is_complete, read_checksums


def stamp() -> str:
    return hashlib.sha256(CHECKSUMS.read_bytes()).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with every part (empty: what was checked once is not read again) and the mark that it was checked."""
    for name in read_checksums():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / ".complete").write_text(stamp())
    return tmp_path


def test_every_part_that_is_asked_for_has_a_checksum() -> None:
    asked = ET.parse(HERE / "ivy.xml").findall("./dependencies/dependency")  # noqa: S314 - our own file
    assert {str(part.get("conf")).partition("->")[0] for part in asked} == {"kafka", "flink", "spark"}
    for part in asked:
        folder = str(part.get("conf")).partition("->")[0]
        assert f"{folder}/{part.get('name')}-{part.get('rev')}.jar" in read_checksums()


def test_checksums_are_of_jars_in_the_three_folders() -> None:
    checksums = read_checksums()
    assert len(checksums) == len(set(checksums.values())) > 40
    for name, digest in checksums.items():
        assert re.fullmatch(r"(kafka|flink|spark)/[\w.-]+\.jar", name)
        assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert [name for name in checksums if name.startswith("flink/")] == [
        "flink/flink-sql-connector-kafka-5.0.0-2.2.jar"
    ]


@pytest.mark.skipif(not TARGET.is_dir(), reason=f"nothing in {TARGET}: orchestration/run_all.sh fetches it")
def test_what_is_here_is_what_was_recorded() -> None:
    found = {str(path.relative_to(TARGET)): path for path in TARGET.rglob("*.jar")}
    assert found.keys() == read_checksums().keys()
    for name, digest in read_checksums().items():
        with found[name].open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest, name
    assert is_complete()


class TestIsComplete:
    def test_with_everything_there(self, target: Path) -> None:
        assert is_complete(target)

    def test_not_in_an_empty_or_missing_folder(self, tmp_path: Path) -> None:
        assert not is_complete(tmp_path)
        assert not is_complete(tmp_path / "nowhere")

    @pytest.mark.parametrize("index", [0, 1, -1])
    def test_not_where_one_part_is_missing(self, target: Path, index: int) -> None:
        (target / list(read_checksums())[index]).unlink()
        assert not is_complete(target)

    def test_not_before_it_was_checked(self, target: Path) -> None:
        (target / ".complete").unlink()
        assert not is_complete(target)

    def test_not_where_other_parts_are_asked_for_since(self, target: Path) -> None:
        (target / ".complete").write_text("0" * 64)
        assert not is_complete(target)
