"""A stand-in for the ``tensorrt`` module: only names of its published Python API, run by ONNX Runtime.

Names are those of the bindings that NVIDIA publishes on PyPI, versions 10 and 11: ``tensorrt_names.json``,
written by ``scripts/tensorrt_names.py``; a class here with another name does not import. Anything else raises
AttributeError, as the real module does. Pointers are real: the context reads and writes the addresses it is
given, so that a wrong size or a freed tensor shows.
"""

from __future__ import annotations

import ctypes
import enum
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

__version__ = "10.9.0"


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3
    INT64 = 8
    BF16 = 7


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    REFIT = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class Logger:
    WARNING = 2

    def __init__(self, min_severity: int = WARNING) -> None:
        self.min_severity = min_severity


class IProgressMonitor:
    def __init__(self) -> None:
        self._is_monitor = True


class INetworkDefinition:
    __slots__ = ("flags", "model")


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        assert len(min) == len(opt) == len(max)
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)), (input, min, opt, max)
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class IBuilderConfig:
    __slots__ = ("_flags", "_pools", "_profiles", "progress_monitor")

    def __init__(self) -> None:
        self._flags: set[BuilderFlag] = set()
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self.progress_monitor: IProgressMonitor | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(BuilderFlag(flag))

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._pools[MemoryPoolType(pool)] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Builder:
    def __init__(self, logger: Logger) -> None:
        assert isinstance(logger, Logger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        network = INetworkDefinition()
        network.flags = flags
        return network

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        assert network.flags & (1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert config._profiles, "dynamic shapes need a profile"
        names = {item.name for item in network.model.graph.input}
        assert set(config._profiles[0]._shapes) == names, "every dynamic input needs its shapes"
        monitor = config.progress_monitor
        if monitor is not None:
            assert isinstance(monitor, IProgressMonitor) and monitor._is_monitor, (
                "super().__init__ was not called"
            )
            monitor.phase_start("Building Engine", None, 4)
            monitor.phase_start("Tactic Selection", "Building Engine", 2)
            for step in range(2):
                if not monitor.step_complete("Tactic Selection", step):
                    return None
            monitor.phase_finish("Tactic Selection")
            for step in range(4):
                if not monitor.step_complete("Building Engine", step):
                    return None
            monitor.phase_finish("Building Engine")
        shapes = json.dumps(config._profiles[0]._shapes).encode()
        refit = BuilderFlag.REFIT in config._flags
        return (
            b"TRT0"
            + bytes([refit])
            + len(shapes).to_bytes(4, "little")
            + shapes
            + network.model.SerializeToString()
        )


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Logger) -> None:
        self._network, self._errors = network, []

    def parse_from_file(self, path: str) -> bool:
        try:
            self._network.model = onnx.load(path)
            onnx.checker.check_model(self._network.model)
        except Exception as error:  # whatever protobuf raises on garbage is a parser error here
            self._errors.append(str(error).splitlines()[0])
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


class Runtime:
    def __init__(self, logger: Logger) -> None:
        assert isinstance(logger, Logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        return ICudaEngine(serialized_engine) if serialized_engine[:4] == b"TRT0" else None


_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16, DataType.INT64: np.int64}
_ONNX = {1: DataType.FLOAT, 10: DataType.HALF, 7: DataType.INT64}


class ICudaEngine:
    def __init__(self, blob: bytes) -> None:
        length = int.from_bytes(blob[5:9], "little")
        self._refittable = bool(blob[4])
        self._ranges = json.loads(blob[9 : 9 + length])
        self._model = onnx.ModelProto.FromString(blob[9 + length :])
        self._io = [(v, TensorIOMode.INPUT) for v in self._model.graph.input]
        self._io += [(v, TensorIOMode.OUTPUT) for v in self._model.graph.output]
        self._load()

    def _load(self) -> None:
        self._session = onnxruntime.InferenceSession(
            self._model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    def get_tensor_name(self, index: int) -> str:
        return self._io[index][0].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return next(mode for value, mode in self._io if value.name == name)

    def get_tensor_dtype(self, name: str) -> DataType:
        return next(_ONNX[value.type.tensor_type.elem_type] for value, _ in self._io if value.name == name)

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine._ranges[name]
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = int(memory)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._outputs()[name].shape

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert isinstance(stream_handle, int)
        for name, value in self._outputs().items():
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
        return True

    def _outputs(self) -> dict[str, np.ndarray]:
        feed = {}
        for name, shape in self._shapes.items():
            kind = np.dtype(_NUMPY[self._engine.get_tensor_dtype(name)])
            size = int(np.prod(shape)) * kind.itemsize
            raw = ctypes.string_at(self._addresses[name], size) if name in self._addresses else bytes(size)
            feed[name] = np.frombuffer(raw, kind).reshape(shape)
        names = [value.name for value, mode in self._engine._io if mode is TensorIOMode.OUTPUT]
        return dict(zip(names, self._engine._session.run(names, feed), strict=True))


class Weights:
    def __init__(self, type: DataType, ptr: int, count: int) -> None:
        self._type, self._ptr, self._count = DataType(type), ptr, count


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Logger) -> None:
        assert engine._refittable, "the engine was built without BuilderFlag.REFIT"
        self._engine = engine
        self._by_name = {tensor.name: tensor for tensor in engine._model.graph.initializer}
        self._staged: dict[str, Weights] = {}

    def get_all_weights(self) -> list[str]:
        return list(self._by_name)

    def get_missing_weights(self) -> list[str]:
        return []

    def set_named_weights(self, name: str, weights: Weights) -> bool:
        tensor = self._by_name.get(name)
        if tensor is None or weights._count != int(np.prod(tensor.dims)):
            return False
        self._staged[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        for name, weights in self._staged.items():
            tensor = self._by_name[name]
            kind = np.dtype(_NUMPY[weights._type])
            raw = ctypes.string_at(weights._ptr, weights._count * kind.itemsize)
            value = np.frombuffer(raw, kind).reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(value, name))
        self._engine._load()
        return True


#: Public names of the published bindings, by version: class -> names.
PUBLISHED = {
    found["version"]: {kind: set(names) for kind, names in found["names"].items()}
    for found in json.loads(Path(__file__).with_name("tensorrt_names.json").read_text(encoding="utf-8"))
}


def _hold_to_what_is_published() -> None:
    for kind in [each for each in globals().values() if isinstance(each, type)]:
        if kind.__module__ != __name__:
            continue
        own = {name for name in (*vars(kind), *getattr(kind, "__slots__", ())) if not name.startswith("_")}
        own -= {"flags", "model"} if kind is INetworkDefinition else set()  # what our parser notes in it
        for version, names in PUBLISHED.items():
            assert own <= names[kind.__name__], (version, kind.__name__, own - names[kind.__name__])


_hold_to_what_is_published()
