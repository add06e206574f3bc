"""Machine code for the loops that every reading goes through: Numba, with two turns of our own.

A kernel is a plain function on arrays. `kernel` compiles it for calls from other kernels and from offline work;
an `EntryPoint` is how the stream calls one. Flink's thread mode runs Python under thread states that the interpreter's
`PyGILState` functions do not know, and Numba's ordinary call waits there for ever; an entry point is compiled in a
thread of its own and called by pointer, which needs no Python object (and takes 0.4 µs where Numba's call takes
more). What is compiled is kept under the hash of all kernels' sources: a changed kernel is never served stale code,
and a job shipped to a cluster finds what an earlier one compiled.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core.caching import _CacheLocator
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SUMS = {"reassoc", "contract", "nsz"}


def kernel(function: Function) -> Function:
    """Compile a function on arrays and numbers; dividing by zero gives inf or nan, as in NumPy.

    Sums may be taken in another order, so that they use the processor's vectors; nothing else is relaxed.

    >>> @kernel
    ... def total(x):
    ...     s = 0.0
    ...     for value in x:
    ...         s += value
    ...     return s
    >>> total(np.array([1.0, 2.0]))
    3.0
    """
    # Inlined: a call that passes views copies their descriptors, which cost half of a reading's time.
    return cast("Function", numba.njit(error_model="numpy", fastmath=_SUMS, forceinline=True)(function))


def cached_kernel(function: Function) -> Function:
    """Like `kernel`, for what is called from offline work: the machine code is kept between processes."""
    return cast("Function", numba.njit(error_model="numpy", fastmath=_SUMS, cache=True)(function))


carray: Any = numba.carray  # type: ignore[attr-defined]
"""An array over (pointer, length), for the functions that `EntryPoint` takes."""

_pointer: Any = types.CPointer
_FLOATS, _INTEGERS = _pointer(types.float64), _pointer(types.int64)
_SIGNATURE = types.void(_INTEGERS, types.int64, _FLOATS, types.int64, _FLOATS, types.int64, _FLOATS, types.int64)
_ARGUMENTS = (ctypes.c_void_p, ctypes.c_int64) * 4
_CALL, _FREE_CALL = ctypes.PYFUNCTYPE(None, *_ARGUMENTS), ctypes.CFUNCTYPE(None, *_ARGUMENTS)
"""Calls that keep the interpreter's lock, and calls that let other threads run meanwhile."""


class EntryPoint:
    """A kernel of four flat arrays (int64, and three of float64) that any thread may call.

    Parameters
    ----------
    function:
        takes (pointer, length) four times and begins with `carray`; defined at a module's top level. It cannot
        be bound while its module is still being imported.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    @cached_property
    def _call(self) -> Any:
        made: list[Any] = []
        failed: list[BaseException] = []

        def build() -> None:
            try:
                made.append(numba.cfunc(_SIGNATURE, cache=True, error_model="numpy")(self._function))
            except BaseException as error:  # raised again below, in the caller's thread
                failed.append(error)

        builder = threading.Thread(target=build, name=f"compile {self._function.__name__}")
        builder.start()
        builder.join()
        if failed:
            raise failed[0]
        self._compiled = made[0]  # owns the machine code
        return _CALL(self._compiled.address)

    @cached_property
    def _free_call(self) -> Any:
        self.prepare()
        return _FREE_CALL(self._compiled.address)

    def prepare(self) -> None:
        """Compile now, or load what an earlier process compiled, instead of at the first call."""
        _ = self._call

    def bind(self, integers: Integers, *floats: Floats, free: bool = False) -> Callable[[], None]:
        """A call with these arrays: they are kept, and read and written in place at each call.

        Parameters
        ----------
        free:
            let other threads of Python's own run meanwhile; not for threads of the JVM, which could not come back
        """
        arrays = (integers, *floats)
        call = self._free_call if free else self._call
        arguments: list[int] = []
        for array in arrays:
            if not array.flags.c_contiguous or array.dtype != (np.int64 if array is integers else np.float64):
                raise ValueError("an entry point takes contiguous arrays of int64 and float64")
            arguments += [array.ctypes.data, array.size]
        a, b, c, d, e, f, g, h = arguments

        def bound(_keep: Any = arrays) -> None:
            call(a, b, c, d, e, f, g, h)

        return bound


@cache
def _sources() -> str:
    """The hash of this package; through the importer, as on a cluster's workers it lies in a zip."""
    return hash_of(files(__package__ or "flead"))


def hash_of(package: Traversable) -> str:
    """The hash of what kernels are made of: what was compiled from other sources is not used."""
    digest = hashlib.sha256()
    for name, source in sorted(_modules(package, "")):
        digest.update(name.encode() + source)
    return digest.hexdigest()[:20]


def _modules(package: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    """Every module of a package and of those within, by its path."""
    for part in package.iterdir():
        if part.name.endswith(".py"):
            yield path + part.name, part.read_bytes()
        elif part.is_dir():
            yield from _modules(part, f"{path}{part.name}/")


def cache_folder() -> Path:
    """Where machine code is kept: `$FLEAD_CACHE`, else `flead` in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FLEAD_CACHE") or Path(caches) / "flead")


def forget_stale(keep: int = 5) -> None:
    """Delete what was compiled from older sources, but for the newest few; set-up calls it."""
    folders = [folder for folder in cache_folder().glob("*") if folder.is_dir()]
    for folder in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _folder() -> Path:
    """Where this process keeps machine code: under the hash of the sources, in the cache folder if that can be written.

    Else in a folder of its own, with what the cache folder holds. Numba's own places would keep it longer, but know a
    kernel by its own file alone: what it calls may have changed.
    """
    shared = cache_folder() / _sources()
    with suppress(OSError):
        shared.mkdir(parents=True, exist_ok=True)
    if os.access(shared, os.W_OK):
        return shared
    own = Path(tempfile.mkdtemp(prefix="flead-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    if shared.is_dir():
        for kept in shared.iterdir():
            shutil.copyfile(kept, own / kept.name)  # without its mode: here it may be written
    return own


class Locator(_CacheLocator):
    """Tells Numba to keep our machine code under the hash of our sources."""

    def __init__(self, py_func: Any) -> None:
        self._line = py_func.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        """The folder."""
        return str(_folder())

    def get_source_stamp(self) -> str:
        """What has to be the same for kept code to be used."""
        return _sources()

    def get_disambiguator(self) -> str:
        """Tells functions of one name apart."""
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Locator | None:
        """A locator for our own functions, None for others."""
        if not str(py_func.__module__).startswith("flead."):
            return None
        return cls(py_func)


_config: Any = numba.config
_config.CACHE_LOCATOR_CLASSES = (
    "flead.compilation.Locator,UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator,IPythonCacheLocator"
)
