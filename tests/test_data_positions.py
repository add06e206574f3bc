from __future__ import annotations

from pathlib import Path

import pytest

from data.positions import read_positions
from flead.errors import BadConfiguration


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("", "names no device"),
        ("device_id,x,y\n", "names no device"),
        ("device_id,x\na,1\n", "line 1: the header must name device_id, x and y"),
        ("device_id,x,y\na,1,north\n", "line 2: it needs a device, x and y"),
        ("device_id,x,y\na,1,inf\n", "line 2: a position is no finite number"),
        ("device_id,x,y\na,1,2\na,1,3\n", "line 3: a has two positions"),
        ("north by northwest\n", "line 1: it is neither CSV"),
        ("1 2.5\n", "line 1: it needs a device, x and y"),
    ],
)
def test_positions_that_cannot_be_used_say_why(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "positions"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadConfiguration, match=why):
        read_positions(path)


def test_positions_of_the_intel_lab(tmp_path: Path) -> None:
    path = tmp_path / "mote_locs.txt"
    path.write_text("1 21.5 23\n2 24.5 20\n")
    assert read_positions(path) == {"mote-1": (21.5, 23.0), "mote-2": (24.5, 20.0)}
