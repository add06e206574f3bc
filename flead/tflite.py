"""Writing TFLite models without TensorFlow: the flatbuffer, its 8-bit numbers, its metadata, its checksum.

The schema is the one that `ai-edge-litert` carries; it and `flatbuffers` are imported when first needed, since Flink
workers import this package too. Layout of a file: the flatbuffer, then the SHA-256 of it (32 bytes). TFLite runtimes
ignore what follows the flatbuffer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead.errors import BadModel
from flead.network import Vector

IDENTIFIER = b"TFL3"
"""What bytes 4 to 8 of a TFLite flatbuffer are."""
ALIGNMENT = 16
"""Bytes; the schema demands it of every buffer (`force_align`), its generated Python code does not do it."""
METADATA = "flead"
"""Name of the metadata entry that holds the caller's strings, as JSON."""
BIAS_LIMIT = 2.0**30
"""Largest bias of an int8 model in steps of its accumulator: leaves half of an int32 to the products."""
FINEST = 2.0**-7
"""Finest step of a result, in steps of its accumulator: finer is noise, and from 1/256 on XNNPACK refuses the model."""
SMALLEST = 1e-30
"""Scales below are taken for 0: they and their products must not leave float32."""
DENSE_VERSION, DENSE_INT8_VERSION, UNARY_VERSION, UNARY_INT8_VERSION = 1, 12, 1, 2
ADD_VERSION, ADD_INT8_VERSION = 1, 2
"""Kernel versions, as in TensorFlow's `op_version.cc`; every runtime that takes FULLY_CONNECTED in version 12 knows one
weight scale per output, and an older one refuses the model instead of misreading it."""


@dataclass(frozen=True)
class Grid:
    """The real numbers that 8 bits can stand for: `scale * (q - zero)`, q from -128 to 127.

    Source: Jacob et al., 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", https://arxiv.org/abs/1712.05877; the limits are those of the TFLite 8-bit quantisation specification.

    >>> Grid.over(np.array([-1.0, 0.5, 4.1])).zero
    -78
    """

    scale: float
    zero: int

    @classmethod
    def over(cls, values: Vector) -> Grid:
        """The grid from the smallest to the largest value, and to 0 in any case: 0 must be exact."""
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        scale = float(_float32(np.array((high - low) / 255.0)))
        return cls(scale, round(-128 - low / scale)) if scale > SMALLEST else cls(1.0, 0)


def _float32(scales: Vector) -> NDArray[np.float32]:
    """Scales as the file holds them."""
    if (scales > np.finfo(np.float32).max).any():
        raise BadModel("this network's numbers, on these samples, are too large for int8")
    return scales.astype(np.float32)


class _Buffer:
    """Bytes at a multiple of `ALIGNMENT`; takes the place of the schema's BufferT."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's name
        from ai_edge_litert import schema_py_generated as schema

        if self.data:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if self.data:
            schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


class Graph:
    """A model in the making: tensors and the operators between them.

    A tensor is known by its index. One with a grid is int8, and so is what is computed from it; one without is
    float32.
    """

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._graph = schema.SubGraphT(tensors=[], operators=[])
        self._codes: dict[tuple[int, int], int] = {}
        self._buffers = [_Buffer(b"")]  # number 0 is everybody's empty buffer, as the schema demands
        self._grids: list[Grid | None] = []

    def tensor(self, name: str, width: int, grid: Grid | None) -> int:
        """Room for `width` numbers, (1, width)."""
        if grid is None:
            return self._tensor(name, (1, width), "FLOAT32")
        return self._tensor(name, (1, width), "INT8", np.array([grid.scale]), grid)

    def dense(self, x: int, layer: Vector, name: str, grid: Grid | None) -> int:
        """Weights times `x`, plus biases.

        Parameters
        ----------
        layer:
            (n_in + 1, n_out), the biases last
        grid:
            of the result; None exactly if `x` is float32
        """
        weights, biases, inputs = layer[:-1].T, layer[-1], self._grids[x]
        if inputs is None or grid is None:
            w = self._constant(f"{name}.weights", weights.astype(np.float32), "FLOAT32")
            b = self._constant(f"{name}.biases", biases.astype(np.float32), "FLOAT32")
        else:
            # One scale per output, wide enough for its largest weight and for its bias in int32.
            steps = np.maximum(np.abs(weights).max(axis=1) / 127.0, np.abs(biases) / inputs.scale / BIAS_LIMIT)
            steps = _float32(steps).astype(np.float64)
            steps[steps < SMALLEST] = max(float(steps.max()), SMALLEST)
            small = np.clip(np.rint(weights / steps[:, None]), -127, 127).astype(np.int8)
            w = self._constant(f"{name}.weights", small, "INT8", steps)
            steps = steps * inputs.scale
            grid = Grid(max(grid.scale, float(steps.max()) * FINEST), grid.zero)
            b = self._constant(f"{name}.biases", np.rint(biases / steps).astype(np.int32), "INT32", steps)
        out = self.tensor(name, len(biases), grid)
        options = self._schema.FullyConnectedOptionsT()
        self._operator(
            "FULLY_CONNECTED", DENSE_VERSION if grid is None else DENSE_INT8_VERSION, [x, w, b], out, options
        )
        return out

    def unary(self, operator: str, x: int, name: str, width: int, grid: Grid | None) -> int:
        """`operator` on every number of `x`."""
        out = self.tensor(name, width, grid)
        self._operator(operator, UNARY_VERSION if grid is None else UNARY_INT8_VERSION, [x], out)
        return out

    def add(self, x: int, y: int, name: str, width: int, grid: Grid | None) -> int:
        """The sum of two results; its grid is not finer than theirs."""
        scales = [inputs.scale for inputs in (self._grids[x], self._grids[y]) if inputs is not None]
        out = self.tensor(name, width, grid and Grid(max(grid.scale, *scales), grid.zero))
        version = ADD_VERSION if grid is None else ADD_INT8_VERSION
        self._operator("ADD", version, [x, y], out, self._schema.AddOptionsT())
        return out

    def finish(self, x: int, out: int, metadata: Mapping[str, str]) -> bytes:
        """The file: from input `x` to output `out`."""
        import flatbuffers

        schema = self._schema
        self._graph.inputs, self._graph.outputs = [x], [out]
        self._buffers.append(_Buffer(json.dumps(dict(metadata)).encode()))
        model = schema.ModelT(
            version=3,
            operatorCodes=[
                schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=version)
                for code, version in self._codes
            ],
            subgraphs=[self._graph],
            buffers=self._buffers,
            metadata=[schema.MetadataT(name=METADATA, buffer=len(self._buffers) - 1)],
        )
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        flat = bytes(builder.Output())
        return flat + hashlib.sha256(flat).digest()

    def _constant(self, name: str, values: NDArray[Any], kind: str, scales: Vector | None = None) -> int:
        self._buffers.append(_Buffer(values.tobytes()))
        return self._tensor(name, values.shape, kind, scales, buffer=len(self._buffers) - 1)

    def _tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: str,
        scales: Vector | None = None,
        grid: Grid | None = None,
        *,
        buffer: int = 0,
    ) -> int:
        schema = self._schema
        quantization = None
        if scales is not None:
            zeros = np.full(len(scales), 0 if grid is None else grid.zero, dtype=np.int64)
            quantization = schema.QuantizationParametersT(scale=_float32(scales), zeroPoint=zeros)
        self._graph.tensors.append(
            schema.TensorT(
                shape=list(shape), type=getattr(schema.TensorType, kind), buffer=buffer, name=name,
                quantization=quantization, hasRank=True,
            )
        )  # fmt: skip
        self._grids.append(grid)
        return len(self._grids) - 1

    def _operator(self, operator: str, version: int, inputs: list[int], out: int, options: Any = None) -> None:
        code = (getattr(self._schema.BuiltinOperator, operator), version)
        # Options are named after their class, AddOptionsT for one, less the T.
        kind = type(options).__name__[:-1] if options else "NONE"
        self._graph.operators.append(
            self._schema.OperatorT(
                opcodeIndex=self._codes.setdefault(code, len(self._codes)),
                inputs=inputs,
                outputs=[out],
                builtinOptionsType=getattr(self._schema.BuiltinOptions, kind),
                builtinOptions=options,
            )
        )


def checked(raw: bytes) -> bytes:
    """The flatbuffer of a file that `Graph.finish` wrote, unharmed.

    TFLite's own loader takes half of the models with a few changed bytes for good, and crashes the process on a few, so
    nothing reaches it that does not end in its own checksum. A checksum tells damage, not malice: load only what FLEAD
    made.

    Raises
    ------
    BadModel
        saying whether the bytes are no TFLite model, or a damaged or foreign one
    """
    flat, digest = raw[:-32], raw[-32:]
    if flat[4:8] != IDENTIFIER:
        raise BadModel(f"these {len(raw)} bytes are no TFLite model; export the model again")
    if hashlib.sha256(flat).digest() != digest:
        raise BadModel("this TFLite model is damaged, or FLEAD did not make it; export the model again")
    return flat


def metadata(raw: bytes) -> dict[str, str]:
    """The caller's strings out of a file that `Graph.finish` wrote.

    Raises
    ------
    BadModel
        as `checked`
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(checked(raw), 0)
    (entry,) = (model.Metadata(number) for number in range(model.MetadataLength()))
    return dict(json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()))
