"""A file of readings is recognised by what is in it; one that cannot be read says why."""

import gzip
from pathlib import Path

import pytest

from data.formats import Csv, IntelLab, JsonLines, Rejected
from data.sources import open_dataset
from flead.errors import BadDataset
from flead.messages import Reading

INTEL = b"2004-03-04 00:00:26.98 14285 1 20.5 35.8 46.9 2.6\n"
CSV = b"timestamp,value\n2014-04-01 00:00:00,20.0\n"
JSON = b'{"device_id":"m","timestamp":"2024-01-01T00:00:00Z","sensors":{"t":1}}\n'


def file(folder: Path, content: bytes, name: str = "pump.txt") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("content", "kind"), [(INTEL, IntelLab), (CSV, Csv), (JSON, JsonLines)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_format_is_told_by_content_and_not_by_name(
    tmp_path: Path, content: bytes, kind: type, packed: bool
) -> None:
    dataset = open_dataset(file(tmp_path, gzip.compress(content) if packed else content, "anything.dat"))
    assert isinstance(dataset.format, kind)
    assert [type(record).__name__ for record in dataset.readings()] == ["Reading"]


def test_line_endings_of_windows_and_a_missing_last_one_make_no_difference(tmp_path: Path) -> None:
    unix = open_dataset(file(tmp_path, CSV + b"2014-04-01 00:05:00,21.0\n", "a.csv"))
    windows = open_dataset(
        file(tmp_path, b"timestamp,value\r\n2014-04-01 00:00:00,20.0\r\n2014-04-01 00:05:00,21.0", "a.csv")
    )
    assert list(unix.readings()) == list(windows.readings())


@pytest.mark.parametrize("content", [INTEL, CSV, JSON])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_part_of_no_reading(tmp_path: Path, content: bytes, packed: bool) -> None:
    marked = b"\xef\xbb\xbf" + content
    plain = list(open_dataset(file(tmp_path, content)).readings())
    dataset = open_dataset(file(tmp_path, gzip.compress(marked) if packed else marked))
    assert list(dataset.readings()) == plain
    assert [type(record).__name__ for record in plain] == ["Reading"]


def test_a_rejected_row_carries_the_line_number_of_the_file(tmp_path: Path) -> None:
    records = list(open_dataset(file(tmp_path, CSV + b"junk\n\n")).readings())
    assert [(r.number, r.line) for r in records if isinstance(r, Rejected)] == [(3, b"junk"), (4, b"")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\n\n\n", "empty lines only"),
        (gzip.compress(b""), "empty"),
        (b"\x1f\x8b", "corrupt or truncated gzip.*fetch it again"),
        (gzip.compress(CSV)[:-9], "corrupt or truncated gzip.*fetch it again"),
        (b"a,b\n1,2\n", "no known format.*'a,b'"),
        (b"\x00\x01\x02", "no known format"),
        (b"timestamp,x,x\n", "header 'timestamp,x,x'"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_says_why(tmp_path: Path, content: bytes, says: str) -> None:
    path = file(tmp_path, content)
    with pytest.raises(BadDataset, match=says) as error:
        list(open_dataset(path).readings())
    assert str(path) in str(error.value)


def test_an_unknown_format_lists_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(BadDataset) as error:
        open_dataset(file(tmp_path, b"hello\n"))
    assert all(word in str(error.value) for word in ("Intel Lab", "CSV", "JSON lines", "hello"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=r"none\.csv cannot be read: No such file"):
        open_dataset(tmp_path / "none.csv")
    with pytest.raises(BadDataset, match="cannot be read: Is a directory"):
        open_dataset(tmp_path)


def test_a_gzip_file_that_breaks_in_the_middle_gives_its_beginning_then_an_error(tmp_path: Path) -> None:
    lines = b"".join(b"2014-04-01 00:00:00,%d\n" % (i * i) for i in range(100_000))
    packed = gzip.compress(CSV + lines)
    dataset = open_dataset(file(tmp_path, packed[: len(packed) // 2]))
    records = dataset.readings()
    assert all(isinstance(next(records), Reading) for _ in range(10_000))
    with pytest.raises(BadDataset, match="corrupt or truncated gzip"):
        list(records)


def test_a_file_without_line_ends_is_not_read_whole_to_recognise_it(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="no known format"):
        open_dataset(file(tmp_path, b"x" * 10_000_000))
