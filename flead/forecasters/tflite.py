"""The network as a microcontroller would run it: TFLite predicts, the network behind it learns.

For seeing, on the stream, what a device would say that runs an exported model between two downloads, and what 8 bits
cost it. The exported file is made anew every `EXPORT_EVERY` learned examples, and whenever the parameters were written
from outside.
"""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import ClassVar, Self

import numpy as np

from flead.errors import BadModel
from flead.export import LiteModel, to_tflite, to_tflite_int8
from flead.forecasters.network import Network
from flead.network import Vector
from flead.plugins import Spec

EXPORT_EVERY = 100
"""Learned examples between two exports: as many readings as lie between two updates of a device, or half as many
where both horizons are learned."""
WINDOW = 128
"""Rows that the int8 grids are calibrated on; until there are as many, predictions are the float model's."""

_HEAD = struct.Struct("<Q")


@cache
def _outside() -> ThreadPoolExecutor:
    """A thread of Python's own, for every call of TFLite: in Flink's threads it waits for `PyGILState` for ever."""
    return ThreadPoolExecutor(1, thread_name_prefix="tflite")


class TfLite(Network):
    """The network, predicting with its last export to float32 TFLite.

    >>> model = TfLite(Spec(("temperature",), per_sensor=1, horizons=1, learning_rate=0.1))
    >>> for x in np.random.default_rng(0).normal(size=(500, 1)):
    ...     model.learn(x, target=0.5 * x - 0.1, observed=np.ones(1))
    >>> model.predict(np.array([1.0])).round(2)
    array([0.4])
    """

    name: ClassVar[str] = "tflite"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._learned = 0
        self._exported = b""
        self._lite: LiteModel | None = None
        self._as_left = b""  # the parameters after the last call: where they differ, somebody has written them

    def predict(self, features: Vector) -> Vector:
        """The expected changes by the last export: (n_features,) to (n_outputs,)."""
        self._notice()
        if self._lite is None:
            return super().predict(features)
        return _outside().submit(self._lite.predict, features).result()

    def learn(self, features: Vector, target: Vector, observed: Vector) -> None:
        """One step of the network; every 100th exports it."""
        self._notice()
        super().learn(features, target, observed)
        if observed.any():
            self._take(features)
            self._learned += 1
            if self._learned % EXPORT_EVERY == 0:
                self._export()
        self._as_left = self.parameters.tobytes()

    def _notice(self) -> None:
        """Export what was written into the parameters."""
        if self.parameters.tobytes() != self._as_left:
            self._export()
            self._as_left = self.parameters.tobytes()

    def _export(self) -> None:
        try:
            self._exported = _outside().submit(self._file).result()
        except BadModel:  # parameters beyond float32: the network speaks for itself
            self._exported = b""
        self._load()

    def _load(self) -> None:
        self._lite = _outside().submit(LiteModel, self._exported).result() if self._exported else None

    def _file(self) -> bytes:
        """The model to predict with."""
        return to_tflite(self.parameters, self.architecture)

    def _take(self, features: Vector) -> None:
        """Remember features to calibrate on."""

    def _extra(self) -> Vector:
        """Further numbers of the state; written to when it is restored."""
        return np.empty(0)

    def to_bytes(self) -> bytes:
        """How many examples were learned, the network's state, and the last export as it is."""
        self._notice()
        return b"".join((_HEAD.pack(self._learned), super().to_bytes(), self._extra().tobytes(), self._exported))

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue from `to_bytes`."""
        model = cls(spec)
        parts = model._kept, model._extra()
        sizes = [part.nbytes for part in parts]
        at = _HEAD.size
        if len(raw) < at + sum(sizes):
            raise BadModel(f"state of {cls.name} has {len(raw)} bytes, for this spec at least {at + sum(sizes)}")
        (model._learned,) = _HEAD.unpack_from(raw)
        for part, size in zip(parts, sizes, strict=True):
            part.ravel()[:] = np.frombuffer(raw, part.dtype, part.size, at)
            at += size
        model._exported, model._as_left = raw[at:], model.parameters.tobytes()
        model._load()
        if model._lite and (model._lite.input_size, model._lite.output_size) != (spec.n_features, spec.n_outputs):
            raise BadModel(f"state of {cls.name} holds a model of another shape than this spec's")
        return model


class TfLiteInt8(TfLite):
    """The network, predicting with its last export to 8-bit integers, calibrated on the device's own features.

    >>> model = TfLiteInt8(Spec(("temperature",), per_sensor=1, horizons=1, learning_rate=0.1))
    >>> for x in np.random.default_rng(0).normal(size=(500, 1)):
    ...     model.learn(x, target=0.5 * x - 0.1, observed=np.ones(1))
    >>> model.predict(np.array([1.0])).round(1)
    array([0.4])
    """

    name: ClassVar[str] = "tflite_int8"

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._rows = np.zeros((WINDOW, spec.n_features), dtype="<f4")

    def _take(self, features: Vector) -> None:
        self._rows[self._learned % WINDOW] = features

    def _extra(self) -> Vector:
        return self._rows

    def _file(self) -> bytes:
        if self._learned < WINDOW:
            return super()._file()
        return to_tflite_int8(self.parameters, self.architecture, self._rows)
