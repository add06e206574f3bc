"""Compiled loops: never stale, callable from any thread, and only with arrays that they can read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from flead import compilation, learning
from flead.compilation import Floats, Locator
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig

SOURCES = Path(compilation.__file__).parent

INNER = """
from flead.compilation import kernel

@kernel
def change(x: float) -> float:
    return x + {amount}
"""
OUTER = """
import numpy as np
from numba import carray
from flead.compilation import EntryPoint
from flead.inner import change

def _run(a, n_a, b, n_b, c, n_c, d, n_d):
    out = carray(d, (n_d,))
    out[0] = change(out[0])

RUN = EntryPoint(_run)

def main():
    out = np.array([1.0])
    RUN.bind(np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), out)()
    print(out[0])
"""


class TestWhatIsKept:
    def test_moves_with_the_sources(self, tmp_path: Path) -> None:
        copy = tmp_path / "flead"
        shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
        before = compilation.hash_of(copy)
        assert compilation.hash_of(copy) == before
        kernels = [path for path in copy.rglob("*.py") if "flead.compilation import" in path.read_text()]
        assert copy / "detectors" / "isolation_forest.py" in kernels
        for module in kernels:
            text = module.read_text()
            module.write_text(text + "# changed\n")
            assert compilation.hash_of(copy) != before, module
            module.write_text(text)
        assert compilation.hash_of(copy) == before
        (copy / "new.py").write_text("")
        assert compilation.hash_of(copy) != before

    def test_is_told_apart_in_a_zip_too(self, tmp_path: Path) -> None:
        hashes = []
        for text in ("a = 1", "a = 2"):
            with zipfile.ZipFile(tmp_path / "workers.zip", "w") as archive:
                archive.writestr("flead/network.py", text)
            hashes.append(compilation.hash_of(zipfile.Path(tmp_path / "workers.zip", "flead/")))
        assert hashes[0] != hashes[1]

    def test_is_never_used_for_a_kernel_that_calls_another_one_by_now(self, tmp_path: Path) -> None:
        package = tmp_path / "flead"
        package.mkdir()
        shutil.copy(SOURCES / "compilation.py", package)
        (package / "__init__.py").touch()
        (package / "outer.py").write_text(OUTER)
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "FLEAD_CACHE": str(tmp_path / "cache")}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # or Python itself keeps what was written within one second
        said = []
        for amount in (1.0, 2.0):
            (package / "inner.py").write_text(INNER.format(amount=amount))
            command = [sys.executable, "-c", "from flead.outer import main; main()"]
            run = subprocess.run(  # noqa: S603
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
            )
            said.append(float(run.stdout))
        assert said == [2.0, 3.0]

    @pytest.fixture
    def anew(self) -> Iterator[None]:
        """The folder is looked for once a process."""
        compilation._folder.cache_clear()
        yield
        compilation._folder.cache_clear()

    @pytest.mark.usefixtures("anew")
    def test_lies_where_it_is_told_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_CACHE", str(tmp_path / "here"))
        locator = Locator.from_function(learning._run, learning.__file__)
        assert locator is not None
        assert Path(locator.get_cache_path()).parent == tmp_path / "here"
        assert Path(locator.get_cache_path()).is_dir()

    def test_is_only_ours(self) -> None:
        assert Locator.from_function(shutil.copy, shutil.__file__) is None

    @pytest.mark.usefixtures("anew")
    def test_is_this_process_own_where_the_cache_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("FLEAD_CACHE", str(tmp_path / "file"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        locator = Locator.from_function(learning._run, learning.__file__)
        assert locator is not None
        folder = Path(locator.get_cache_path())
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
        assert locator.get_cache_path() == str(folder)

    @pytest.mark.usefixtures("anew")
    def test_is_taken_from_a_cache_that_can_only_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_CACHE", str(tmp_path / "shared"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (shared := compilation._folder() / "kernel.nbc").write_text("machine code")
        compilation._folder.cache_clear()
        shared.chmod(0o400)
        shared.parent.chmod(0o500)
        monkeypatch.setattr("os.access", lambda path, mode: False)  # the superuser may write everywhere
        own = compilation._folder() / "kernel.nbc"
        assert own.read_text() == "machine code"
        assert (own.stat().st_mode & 0o200, own.parent.stat().st_mode & 0o777) == (0o200, 0o700)


def arrays() -> tuple[compilation.Integers, Floats, Floats, Floats]:
    return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0), np.zeros(2)


def _no_python(a, n_a, b, n_b, c, n_c, d, n_d):  # type: ignore[no-untyped-def]
    """What no machine code can be made of."""
    raise_(a)  # type: ignore[name-defined]  # noqa: F821


class TestAnEntryPoint:
    def test_may_be_called_from_any_thread_and_says_the_same(self) -> None:
        times, values = 30.0 * np.arange(200), np.random.default_rng(0).normal(20.0, 1.0, (200, 2))
        here = DeviceLearner(("a", "b"), LearnerConfig()).process_frame(times, values)
        found: SimpleQueue[Floats] = SimpleQueue()

        def elsewhere() -> None:
            learner = DeviceLearner(("a", "b"), LearnerConfig())
            found.put(learner.process_frame(times, values).forecast)

        threads = [threading.Thread(target=elsewhere) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in threads:
            assert_array_equal(found.get(timeout=10), here.forecast)

    @pytest.mark.parametrize("place", [0, 1, 2, 3])
    def test_refuses_arrays_that_are_not_contiguous(self, place: int) -> None:
        given = list(arrays())
        given[place] = np.zeros(8, dtype=given[place].dtype)[::2]
        integers, *floats = given
        with pytest.raises(ValueError, match="contiguous"):
            learning.RUN.bind(integers, *floats)  # type: ignore[arg-type]

    def test_keeps_its_arrays_alive(self) -> None:
        learner = DeviceLearner(("a",), LearnerConfig())
        said = np.zeros(learning.SAID + 4)
        call = learning.RUN.bind(learner._sizes, learner._buffer, np.array([1e9, 20.0]), said)
        del learner
        call()
        assert said[learning.SAID + 1] == 20.0

    def test_raises_in_the_callers_thread_what_went_wrong_while_compiling(self) -> None:
        point = compilation.EntryPoint(_no_python)
        with pytest.raises(Exception, match="raise_"):
            point.bind(*arrays())


def test_of_what_older_sources_left_the_newest_few_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`orchestration/setup/prepare.sh` calls it: without it every version would leave some megabytes."""
    monkeypatch.setenv("FLEAD_CACHE", str(tmp_path))
    for age in range(7):
        (tmp_path / f"of {age} s ago").mkdir()
        os.utime(tmp_path / f"of {age} s ago", (1_000 - age, 1_000 - age))
    compilation.forget_stale(keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"of 0 s ago", "of 1 s ago"}
