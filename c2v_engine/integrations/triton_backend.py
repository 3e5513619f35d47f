"""What NVIDIA Triton Inference Server's Python backend runs; ``export_triton`` writes its model.

The requests of a batch are embedded by one call of the engine for each prompt they name. A text
that can not be embedded fails its own request and no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from c2v_engine.errors import BackendError, InputError, TextError
from c2v_engine.opener import EngineSpec

Encode = Callable[[list[str], "str | None"], np.ndarray]


@dataclass(frozen=True)
class TextRequest:
    """What one request asks for.

    Attributes:
        texts: to embed.
        prompt_names: of each text; None for the checkpoint's default.
    """

    texts: Sequence[str]
    prompt_names: Sequence[str | None]


def embed_requests(
    encode: Encode, requests: Sequence[TextRequest]
) -> list[list[np.ndarray] | Exception]:
    """Embed the texts of several requests together.

    Args:
        encode: gives ``[texts, columns]`` for texts and the name of their prompt.
        requests: any number.

    Returns:
        For each request its embeddings ``[columns]``, one a text, or why there are none.
    """
    results: list[list[np.ndarray] | Exception] = []
    places: dict[str | None, list[tuple[int, int]]] = {}
    for number, request in enumerate(requests):
        results.append([np.empty(0)] * len(request.texts))
        for row, name in enumerate(request.prompt_names):
            places.setdefault(name, []).append((number, row))
    for name, waiting in places.items():
        while waiting := [place for place in waiting if isinstance(results[place[0]], list)]:
            try:
                embeddings = encode([requests[number].texts[row] for number, row in waiting], name)
            except TextError as error:
                number, row = waiting[error.row]
                results[number] = TextError(row, error.reason)
                continue  # without that request
            except Exception as error:  # whatever it is, no request may be left without an answer
                for number, _ in waiting:
                    results[number] = error
                continue
            for (number, row), embedding in zip(waiting, embeddings, strict=True):
                found = results[number]
                assert isinstance(found, list)
                found[row] = embedding
            break
    return results


class TritonPythonModel:
    """The model as Triton's Python backend calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the checkpoint, and embed a text with it so that a broken one is never ready.

        Args:
            args: Triton's: the model's config as JSON, its folder, the kind and number of its
                device.

        Raises:
            BackendError: the server's own code does not go with the NumPy that is installed.
        """
        import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

        _check_numpy(pb_utils)
        self._pb_utils: Any = pb_utils
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        version = Path(args["model_repository"]) / args["model_version"]
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self._engine = EngineSpec(
            str(version / given["checkpoint"]), device=device, dtype=given["dtype"]
        ).open()
        normalize, truncate_dim = given.get("normalize"), given.get("truncate_dim")
        self._options: dict[str, Any] = {
            "precision": given["precision"],
            "normalize_embeddings": None if normalize is None else normalize == "true",
            "truncate_dim": None if truncate_dim is None else int(truncate_dim),
        }
        if on_gpu:
            self._engine.warmup(**self._options)
        self._encode([""], None)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Embed the texts of the requests that Triton has put together.

        Returns:
            A response for each, with its embeddings or with an error.
        """
        answers: list[Any] = [None] * len(requests)
        wanted: dict[int, TextRequest] = {}
        for number, request in enumerate(requests):
            if request.is_cancelled():
                answers[number] = self._refusal("the request was cancelled", "CANCELLED")
                continue
            try:
                wanted[number] = self._read(request)
            except InputError as error:
                answers[number] = self._refusal(str(error), "INVALID_ARG")
        results = embed_requests(self._encode, list(wanted.values()))
        for number, result in zip(wanted, results, strict=True):
            answers[number] = self._answer(result)
        return answers

    def finalize(self) -> None:
        """Let the engine go."""
        self._engine.close()

    def _encode(self, texts: list[str], prompt_name: str | None) -> np.ndarray:
        embeddings: np.ndarray = self._engine.encode(
            texts, prompt_name=prompt_name, show_progress_bar=False, **self._options
        )
        return embeddings

    def _read(self, request: Any) -> TextRequest:
        texts = self._strings(request, "TEXT") or []
        names: Sequence[str | None] | None = self._strings(request, "PROMPT_NAME")
        if names is None:
            names = [None] * len(texts)
        if len(names) != len(texts):
            raise InputError(f"PROMPT_NAME has {len(names)} names, expected one for each text")
        return TextRequest(texts, names)

    def _strings(self, request: Any, name: str) -> list[str] | None:
        """The strings of an input; None where it was not given."""
        tensor = self._pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        strings = []
        for row, item in enumerate(tensor.as_numpy().reshape(-1).tolist()):
            try:
                strings.append(item.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{name} {row}: is not valid UTF-8: {error.reason} at byte {error.start}"
                ) from None
        return strings

    def _answer(self, result: list[np.ndarray] | Exception) -> Any:
        if isinstance(result, InputError):
            return self._refusal(str(result), "INVALID_ARG")
        if isinstance(result, Exception):
            reason = " ".join(str(result).split())
            self._pb_utils.Logger.log_error(f"embedding failed: {reason}")
            return self._refusal(f"embedding failed: {reason}", "INTERNAL")
        tensor = self._pb_utils.Tensor("EMBEDDING", np.stack(result))
        return self._pb_utils.InferenceResponse([tensor])

    def _refusal(self, message: str, code: str) -> Any:
        errors = self._pb_utils.TritonError
        return self._pb_utils.InferenceResponse([], errors(message, getattr(errors, code)))


def _check_numpy(pb_utils: Any) -> None:
    """Refuse a backend that was built for NumPy 1 and reads the arrays of NumPy 2 wrongly.

    Raises:
        BackendError: an array came back changed.
    """
    import torch

    sent = pb_utils.Tensor.from_dlpack("PROBE", torch.arange(2, dtype=torch.uint8))
    if sent.as_numpy().tolist() != [0, 1]:
        raise BackendError(
            f"this Triton's Python backend does not work with NumPy {np.__version__}: "
            "pip install 'numpy<2' in the server's Python, or take a server that was built for it"
        )
