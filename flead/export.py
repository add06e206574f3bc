"""A network in the forms that other runtimes take: TFLite (float32 and int8), ONNX and npz. Bytes out, bytes in.

Every form carries the caller's `metadata` (device, cohort, version, sensors, feature names), strings by name, which
`metadata_of` reads again. Nothing is ever unpickled. The runtimes are imported when first needed.
"""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flead import tflite
from flead.errors import BadModel
from flead.network import Architecture, Vector, layers

INPUT, OUTPUT = "x", "change"
"""What the input and the output are called in every form."""
DEEP, SHORT = "change.deep", "change.short"
"""The last hidden layer's part of the output and, in a network with `skip`, the inputs' part: their sum is the output.
A concatenation would do for floats; in int8 it would force one scale on the inputs and the hidden values."""
OPSET, IR_VERSION = 17, 8
"""ONNX of 2022: what runs it is any onnxruntime since 1.12."""
NPZ_LIMIT = 64 * 2**20
"""Bytes of an unpacked npz: a small file cannot fill the memory."""

Model = Callable[[Vector], Vector]
"""(n_in,) to (n_out,)"""


@dataclass(frozen=True)
class Activation:
    """What the hidden layers do, in each form."""

    name: str
    function: Callable[[Vector], Vector]
    onnx_operator: str
    tflite_operator: str
    reach: tuple[float, float]
    """Inputs beyond these no longer change an int8 output, so the int8 grid before it need not go further."""
    grid: tflite.Grid | None
    """The output's int8 grid where TFLite fixes it, else None: calibrated."""


# int8 outputs of TANH are multiples of 1/128 by specification; tanh(3.12) is half a step below 1.
ACTIVATION = Activation("tanh", np.tanh, "Tanh", "TANH", (-3.12, 3.12), tflite.Grid(1 / 128, 0))
"""The hidden layers' activation, for every form; another one is another line like this."""


def to_tflite(theta: Vector, architecture: Architecture, metadata: Mapping[str, str] | None = None) -> bytes:
    """The network as a float32 TFLite model: input `x` (1, n_in), output `change` (1, n_out).

    Parameters
    ----------
    theta:
        (parameter_count,)

    Raises
    ------
    BadModel
        if `theta` does not fit the architecture, or float32

    >>> model = LiteModel(to_tflite(np.array([2.0, 1.0]), Architecture(1, (), 1)))
    >>> model.predict(np.array([3.0]))
    array([7.])
    """
    return _tflite(_Parts.of(theta, architecture), itertools.repeat(None), metadata or {})


def to_tflite_int8(
    theta: Vector, architecture: Architecture, samples: Vector, metadata: Mapping[str, str] | None = None
) -> bytes:
    """The network in 8-bit integers throughout: int8 input `x` (1, n_in), int8 output `change` (1, n_out).

    The grid of each activation spans what `samples` bring forth there, so the samples must look like what the model
    will see: values beyond them are cut off. Weights have one scale per output; runtimes need FULLY_CONNECTED
    version 12 for that.

    Parameters
    ----------
    theta:
        (parameter_count,)
    samples:
        (m, n_in), the device's own recent inputs; some hundred will do

    Raises
    ------
    BadModel
        if `theta` does not fit the architecture, or the samples do not

    Source: Jacob et al., 2018, https://arxiv.org/abs/1712.05877.
    """
    parts, samples = _Parts.of(theta, architecture), np.asarray(samples, dtype=np.float64)
    if samples.ndim != 2 or not samples.size or samples.shape[1] != architecture.input_size:
        raise BadModel(f"calibration needs samples (m, {architecture.input_size}), m > 0; these are {samples.shape}")
    if not np.isfinite(samples).all():
        raise BadModel("a calibration sample is not a finite number")
    return _tflite(parts, _calibrated(parts, samples), metadata or {})


def to_onnx(theta: Vector, architecture: Architecture, metadata: Mapping[str, str] | None = None) -> bytes:
    """The network as a float32 ONNX model: input `x` (n, n_in), output `change` (n, n_out), for any n.

    Parameters
    ----------
    theta:
        (parameter_count,)
    metadata:
        goes to `metadata_props`

    Raises
    ------
    BadModel
        if `theta` does not fit the architecture, or float32
    """
    from onnx import TensorProto, helper, numpy_helper

    parts = _Parts.of(theta, architecture)
    nodes, constants, at = [], [], INPUT

    def dense(x: str, layer: Vector, out: str, addend: str | None = None) -> None:
        constants.append(numpy_helper.from_array(layer[:-1].astype(np.float32), f"{out}.weights"))
        if addend is None:
            addend = f"{out}.biases"
            constants.append(numpy_helper.from_array(layer[-1].astype(np.float32), addend))
        nodes.append(helper.make_node("Gemm", [x, f"{out}.weights", addend], [out]))

    for depth, layer in enumerate(parts.hidden):
        dense(at, layer, f"h{depth}")
        nodes.append(helper.make_node(ACTIVATION.onnx_operator, [f"h{depth}"], [f"h{depth}.out"]))
        at = f"h{depth}.out"
    if parts.skip is None:
        dense(at, parts.last, OUTPUT)
    else:
        dense(at, parts.last, DEEP)
        dense(INPUT, parts.skip, OUTPUT, addend=DEEP)
    graph = helper.make_graph(
        nodes,
        "flead",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", architecture.input_size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", architecture.output_size])],
        constants,
    )
    model = helper.make_model(
        graph, producer_name="flead", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    helper.set_model_props(model, dict(metadata or {}))
    return bytes(model.SerializeToString())


def to_npz(theta: Vector, architecture: Architecture, metadata: Mapping[str, str] | None = None) -> bytes:
    """The network as NumPy arrays, to the last bit: `theta`, `sizes`, `skip`, `activation`, and `metadata` as JSON.

    Parameters
    ----------
    theta:
        (parameter_count,)

    Raises
    ------
    BadModel
        if `theta` does not fit the architecture

    >>> from_npz(to_npz(np.array([2.0, 1.0]), Architecture(1, (), 1)))
    (array([2., 1.]), Architecture(input_size=1, hidden_sizes=(), output_size=1, skip=False))
    """
    _views(theta, architecture, np.float64)
    out = io.BytesIO()
    np.savez(
        out,
        allow_pickle=False,
        theta=np.asarray(theta, dtype=np.float64),
        sizes=np.array(architecture.sizes),
        skip=np.array(architecture.skip),
        activation=np.array(ACTIVATION.name),
        metadata=np.array(json.dumps(dict(metadata or {}))),
    )
    return out.getvalue()


def from_npz(raw: bytes) -> tuple[Vector, Architecture]:
    """Read what `to_npz` wrote: theta (parameter_count,) and its architecture.

    Raises
    ------
    BadModel
        if the bytes are no npz, or one whose arrays are not a network of ours
    """
    arrays = _arrays(raw)
    theta, sizes, skip, activation = (arrays[name] for name in ("theta", "sizes", "skip", "activation"))
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or len(sizes) < 2 or (sizes < 1).any():
        raise BadModel(f"sizes must be two or more positive integers, inputs first; they are {sizes!r}")
    if skip.shape != () or skip.dtype != np.bool_:
        raise BadModel(f"skip must be true or false, it is {skip!r}")
    if str(activation) != ACTIVATION.name:
        raise BadModel(f"hidden layers are {ACTIVATION.name} here, this network's are {str(activation)[:40]!r}")
    n_in, *hidden, n_out = map(int, sizes)
    architecture = Architecture(n_in, tuple(hidden), n_out, bool(skip))
    _views(theta, architecture, np.float64)
    return theta, architecture


def metadata_of(raw: bytes) -> dict[str, str]:
    """The strings that the caller gave to `to_tflite`, `to_tflite_int8`, `to_onnx` or `to_npz`.

    Raises
    ------
    BadModel
        if the bytes are none of the three forms

    >>> metadata_of(to_npz(np.array([2.0, 1.0]), Architecture(1, (), 1), {"device": "mote-7"}))
    {'device': 'mote-7'}
    """
    if raw[4:8] == tflite.IDENTIFIER:
        return tflite.metadata(raw)
    if raw[:2] == b"PK":
        return _strings(str(_arrays(raw)["metadata"]))
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(raw)
    except DecodeError as error:
        raise BadModel(f"these {len(raw)} bytes are no TFLite, ONNX or npz model: {error}") from error
    if not model.HasField("graph") or not model.opset_import:
        raise BadModel(f"these {len(raw)} bytes are no TFLite, ONNX or npz model")
    return {entry.key: entry.value for entry in model.metadata_props}


class LiteModel:
    """A model made by `to_tflite` or `to_tflite_int8`, loaded into TFLite's interpreter.

    One thread at a time. XNNPACK, TFLite's default delegate, stays out: plain kernels give every machine the same path.
    Load only bytes that FLEAD made: accidental damage is found by the checksum before TFLite sees it, but TFLite's
    loader can be crashed on purpose.

    Raises
    ------
    BadModel
        if the bytes are no such model
    """

    def __init__(self, raw: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        flat = tflite.checked(raw)
        try:
            self._interpreter = Interpreter(
                model_content=flat,
                num_threads=1,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise BadModel(f"TFLite does not take this model: {error}") from error
        (x,), (out,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.int8 = x["dtype"] is np.int8
        self.input_size, self.output_size = int(x["shape"][1]), int(out["shape"][1])
        self._shape, self._at, self._out = (self.input_size,), int(x["index"]), int(out["index"])
        # For int8. Constants are arrays, since NumPy would convert a Python number at each call; room is made once.
        scale, zero = x["quantization"]
        self._scale, self._zero, self._low, self._high = map(np.array, (scale, zero, -128.0, 127.0))
        self._steps, self._numbers = np.empty(self._shape), np.empty((1, self.input_size), dtype=x["dtype"])
        scale, zero = out["quantization"]
        # What each output stands for, in the order of indices: 0 to 127, then -128 to -1.
        self._values = scale * (np.arange(256).astype(np.int8).astype(np.float64) - zero)

    def predict(self, x: Vector) -> Vector:
        """The network's output for one input, finite: (n_in,) to (n_out,), a new array each time.

        Raises
        ------
        BadModel
            if the model takes another number of inputs
        """
        if x.shape != self._shape:
            raise BadModel(f"this model takes inputs {self._shape}, these are {x.shape}")
        if not self.int8:
            return np.asarray(self._run(x), dtype=np.float64)
        steps = np.divide(x, self._scale, self._steps)
        np.add(steps, self._zero, steps)
        np.rint(steps, steps)
        np.minimum(steps, self._high, steps)
        np.maximum(steps, self._low, steps)
        out: Vector = self._values.take(self._run(steps))
        return out

    def _run(self, x: Vector) -> NDArray[Any]:
        self._numbers[0] = x
        self._interpreter.set_tensor(self._at, self._numbers)
        self._interpreter.invoke()
        out: NDArray[Any] = self._interpreter.get_tensor(self._out)[0]
        return out


class Agreement(NamedTuple):
    """How far one model's outputs lie from another's, over all samples and outputs."""

    max_abs: float
    rmse: float
    relative_rmse: float
    """`rmse` as a share of the reference outputs' own root mean square; infinite if only those are 0."""


def agreement(reference: Model, other: Model, samples: Vector) -> Agreement:
    """Compare two models, for instance `network.forward` and `LiteModel.predict`, one sample at a time.

    Parameters
    ----------
    samples:
        (m, n_in), m > 0

    >>> agreement(lambda x: x, lambda x: 1.5 * x, np.eye(2)).relative_rmse
    0.5
    """
    expected = np.array([reference(x) for x in samples])
    error = np.array([other(x) for x in samples]) - expected
    rmse, size = (float(np.sqrt(np.mean(values * values))) for values in (error, expected))
    return Agreement(float(np.abs(error).max()), rmse, rmse / size if size else float("inf") if rmse else 0.0)


def _views(theta: Vector, architecture: Architecture, kind: type[np.floating[Any]] = np.float32) -> list[Vector]:
    """The layers of `theta`, once it is sure that every parameter is there and a finite number of `kind`."""
    if theta.shape != (architecture.parameter_count,) or theta.dtype != np.float64:
        raise BadModel(
            f"architecture {architecture} has {architecture.parameter_count} parameters (float64), "
            f"these are {theta.shape} ({theta.dtype})"
        )
    if not (np.abs(theta) <= np.finfo(kind).max).all():
        raise BadModel(f"a weight is not a finite number of {np.finfo(kind).bits} bits")
    return layers(theta, architecture)


class _Parts(NamedTuple):
    """The layers, (n_in + 1, n_out) each: the last one's rows for the inputs, with biases of 0, stand alone."""

    hidden: list[Vector]
    last: Vector
    skip: Vector | None

    @classmethod
    def of(cls, theta: Vector, architecture: Architecture) -> _Parts:
        *hidden, last = _views(theta, architecture)
        if not (architecture.skip and hidden):
            return cls(hidden, last, None)
        deep = architecture.hidden_sizes[-1]
        inputs = np.vstack((last[deep:-1], np.zeros(last.shape[1])))
        return cls(hidden, np.vstack((last[:deep], last[-1])), inputs)


def _tflite(parts: _Parts, grids: Iterator[tflite.Grid | None], metadata: Mapping[str, str]) -> bytes:
    """Dense layers, the activation between them; `grids` of the input and then of each result in turn."""
    graph = tflite.Graph()
    at = x = graph.tensor(INPUT, len((*parts.hidden, parts.last)[0]) - 1, next(grids))
    for depth, layer in enumerate(parts.hidden):
        at = graph.dense(at, layer, f"h{depth}", next(grids))
        at = graph.unary(ACTIVATION.tflite_operator, at, f"h{depth}.out", layer.shape[1], next(grids))
    grid = next(grids)
    if parts.skip is None:
        return graph.finish(x, graph.dense(at, parts.last, OUTPUT, grid), metadata)
    both = graph.dense(at, parts.last, DEEP, grid), graph.dense(x, parts.skip, SHORT, grid)
    return graph.finish(x, graph.add(*both, OUTPUT, parts.last.shape[1], grid), metadata)


def _calibrated(parts: _Parts, samples: Vector) -> Iterator[tflite.Grid]:
    """The int8 grids that `_tflite` asks for, in its order, each as wide as `samples` (m, n_in) need it there.

    The two parts of an output and their sum share a grid: then adding them rounds nothing.
    """
    yield tflite.Grid.over(samples)
    at = samples
    for layer in parts.hidden:
        at = at @ layer[:-1] + layer[-1]
        yield tflite.Grid.over(np.clip(at, *ACTIVATION.reach))
        at = ACTIVATION.function(at)
        yield ACTIVATION.grid or tflite.Grid.over(at)
    deep = at @ parts.last[:-1] + parts.last[-1]
    if parts.skip is None:
        yield tflite.Grid.over(deep)
    else:
        short = samples @ parts.skip[:-1]
        yield tflite.Grid.over(np.stack((deep, short, deep + short)))


_ARRAYS = ("theta", "sizes", "skip", "activation", "metadata")


def _arrays(raw: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of an npz of ours."""
    try:
        _check_unpacked(raw)
        with np.load(io.BytesIO(raw), allow_pickle=False) as npz:
            return {name: np.asanyarray(npz[name]) for name in _ARRAYS}
    except BadModel:
        raise
    except Exception as error:  # whatever zip, deflate and the array headers find to complain about
        raise BadModel(f"these {len(raw)} bytes are no npz model: {error}") from error


def _check_unpacked(raw: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > NPZ_LIMIT:
        raise BadModel(f"this npz would unpack to {unpacked} bytes, {NPZ_LIMIT} are allowed")


def _strings(text: str) -> dict[str, str]:
    """Metadata out of its JSON."""
    try:
        strings = json.loads(text)
    except ValueError as error:
        raise BadModel(f"the model's metadata is no JSON: {error}") from error
    if not isinstance(strings, dict) or not all(isinstance(value, str) for value in strings.values()):
        raise BadModel("the model's metadata is not strings by name")
    return strings
