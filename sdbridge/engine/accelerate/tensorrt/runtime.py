"""A built TensorRT engine, run: bind tensors, launch on torch's stream, refit weights in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdbridge.engine.accelerate.tensorrt.export import WeightName
from sdbridge.errors import SdbridgeError


def current_cuda_stream() -> int:
    """Handle of the stream that torch is queueing on."""
    return torch.cuda.current_stream().cuda_stream


class BuiltEngine:
    """One deserialised engine with its context and output buffers.

    ``run`` takes and gives CUDA tensors and does not synchronise. Outputs are overwritten by the
    next call. Buffers are made when a shape is new, never in steady state.
    """

    def __init__(
        self, trt: Any, blob: bytes, device: torch.device, stream: Callable[[], int] = current_cuda_stream
    ) -> None:
        self._trt = trt
        self._stream = stream
        self._device = device
        self._logger = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(self._logger)
        self._engine = runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            raise SdbridgeError("SDB-TENSORRT-LOAD", f"TensorRT refused an engine of {len(blob)} bytes")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        self._dtypes = {n: _torch_dtype(trt, self._engine.get_tensor_dtype(n)) for n in names}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._buffers: dict[str, Tensor] = {}

    def run(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Launch on torch's current stream. Raises SDB-TENSORRT-RUN for a shape outside the ranges."""
        kept = []  # alive until the launch is queued
        changed = False
        for name in self.inputs:
            tensor = tensors[name].to(self._device, self._dtypes[name]).contiguous()
            kept.append(tensor)
            shape = tuple(tensor.shape)
            if self._shapes.get(name) != shape:
                if not self._context.set_input_shape(name, shape):
                    raise SdbridgeError("SDB-TENSORRT-RUN", f"{name} {shape} is outside what was built")
                self._shapes[name] = shape
                changed = True
            self._context.set_tensor_address(name, tensor.data_ptr())
        if changed:
            self._make_buffers()
        if not self._context.execute_async_v3(self._stream()):
            raise SdbridgeError("SDB-TENSORRT-RUN", f"TensorRT did not launch for {self._shapes}")
        return dict(self._buffers)

    def _make_buffers(self) -> None:
        for name in self.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            self._buffers[name] = torch.empty(shape, dtype=self._dtypes[name], device=self._device)
            self._context.set_tensor_address(name, self._buffers[name].data_ptr())

    def refit(self, names: tuple[WeightName, ...], parameters: Mapping[str, Tensor]) -> int:
        """Write the parameters that are named into the engine; how many were written.

        The refitter copies from host memory, so this costs a download; it is for LoRA changes, not
        for every frame. Raises SDB-TENSORRT-REFIT with the weight that was refused.
        """
        refitter = self._trt.Refitter(self._engine, self._logger)
        known = set(refitter.get_all_weights())
        hosts = []  # the refitter reads these until refit_cuda_engine has returned
        for entry in names:
            if entry.initializer not in known or entry.parameter not in parameters:
                continue
            value = parameters[entry.parameter].detach()
            host = (value.T if entry.transposed else value).contiguous().cpu()
            hosts.append(host)
            weights = self._trt.Weights(_trt_dtype(self._trt, host.dtype), host.data_ptr(), host.numel())
            if not refitter.set_named_weights(entry.initializer, weights):
                raise SdbridgeError("SDB-TENSORRT-REFIT", f"{entry.parameter} was refused")
        if hosts and not refitter.refit_cuda_engine():
            missing = ", ".join(list(refitter.get_missing_weights())[:5])
            raise SdbridgeError("SDB-TENSORRT-REFIT", f"the engine wants more weights: {missing}")
        return len(hosts)

    def close(self) -> None:
        self._buffers.clear()
        del self._context, self._engine


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    table = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
    }
    return table[dtype]


def _trt_dtype(trt: Any, dtype: torch.dtype) -> Any:
    table = {
        torch.float32: trt.DataType.FLOAT,
        torch.float16: trt.DataType.HALF,
        torch.bfloat16: trt.DataType.BF16,
    }
    return table[dtype]
