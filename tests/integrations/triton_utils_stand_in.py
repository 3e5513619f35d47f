"""``triton_python_backend_utils`` as far as a model needs it; the real one lives in the server.

It has the names, arguments and refusals of the module that Triton's Python backend (24.10) gives
its models.
"""

from __future__ import annotations

import numpy as np
import torch

LOGGED: list[str] = []


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, np.ascontiguousarray(array)

    @classmethod
    def from_dlpack(cls, name: str, tensor: torch.Tensor) -> Tensor:
        return cls(name, np.from_dlpack(tensor))

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = range(4)
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(4, 8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceRequest:
    def __init__(self, inputs: list[Tensor], cancelled: bool = False) -> None:
        self._inputs, self._cancelled = inputs, cancelled

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def is_cancelled(self) -> bool:
        return self._cancelled


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._outputs, self._error = output_tensors, error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    @staticmethod
    def log_error(message: str) -> None:
        LOGGED.append(message)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)
