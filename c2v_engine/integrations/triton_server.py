"""A model repository of NVIDIA Triton Inference Server that embeds texts with the engine.

``export_triton`` writes, for its Python backend,

```
<repository>/<name>/config.pbtxt
<repository>/<name>/1/model.py       hands over to c2v_engine.integrations.triton_backend
<repository>/<name>/1/checkpoint/    unless the checkpoint is named by its path
```
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from c2v_engine.errors import InputError, OutputError

if TYPE_CHECKING:
    from c2v_engine.kernels.dual_token_pool import Precision
    from c2v_engine.model.checkpoint import CheckpointDescription

Kind = Literal["auto", "cpu", "gpu"]

CHECKPOINT_FOLDER = "checkpoint"
OUTPUT_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "binary": "TYPE_INT8",
    "ubinary": "TYPE_UINT8",
}
_MODEL = '''"""Embeds texts with C2V Engine, which must be installed in the server's Python."""

from c2v_engine.integrations.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class TritonOptions:
    """How Triton serves a checkpoint.

    Attributes:
        name: of the model there; None for that of the checkpoint's folder.
        kind: ``gpu``, ``cpu``, or ``auto``: the GPUs that the server finds, else the CPU.
        instances: copies of the model on each GPU, or on the CPU.
        dtype: of the computation, as in ``Causal2Vec.from_pretrained``.
        precision: of the embeddings; all but bfloat16.
        normalize: None for the checkpoint's setting.
        truncate_dim: as in ``encode``.
        max_batch_size: most texts of a request, and of the requests that are computed together.
        queue_delay: microseconds that a batch waits to be filled; those that arrive while another
            is computed are joined without any.
        queue_size: most requests that wait; more are refused. 0 for any number.
        copy: whether the checkpoint is copied into the repository, else it is named by its path.

    Raises:
        InputError: a field that can not be.
    """

    name: str | None = None
    kind: Kind = "auto"
    instances: int = 1
    dtype: str = "auto"
    precision: Precision = "float32"
    normalize: bool | None = None
    truncate_dim: int | None = None
    max_batch_size: int = 256
    queue_delay: int = 0
    queue_size: int = 1024
    copy: bool = True

    def __post_init__(self) -> None:
        if self.precision not in OUTPUT_TYPES:
            known = ", ".join(OUTPUT_TYPES)
            raise InputError(f"precision is {self.precision!r}, expected one of: {known}")
        if self.kind not in get_args(Kind):
            raise InputError(f"kind is {self.kind!r}, expected auto, cpu or gpu")
        for field, least in (
            ("instances", 1),
            ("max_batch_size", 1),
            ("queue_delay", 0),
            ("queue_size", 0),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{field} is {value!r}, expected a number of at least {least}")


def export_triton(
    model: str | Path | None, output: str | Path, options: TritonOptions | None = None
) -> Path:
    """Write a model repository for Triton's Python backend, or add a model to one.

    The model has the inputs ``TEXT``, strings ``[texts, 1]``, and optionally ``PROMPT_NAME``, for
    each text the name of one of the checkpoint's prompts, ``[texts, 1]``; its output ``EMBEDDING``
    is ``[texts, columns]``. The weights are not loaded here.

    Args:
        model: a checkpoint's folder or Hub name; None for the default model.
        output: the repository; made where it is missing.
        options: None for the defaults.

    Returns:
        The folder of the model in the repository.

    Raises:
        ConfigError: the checkpoint's ``config.json`` is missing or wrong.
        CheckpointError: there is no such checkpoint.
        InputError: options that do not fit it.
        OutputError: the repository has such a model already, or it can not be written.
    """
    from c2v_engine.engine import checkpoint_directory
    from c2v_engine.model.checkpoint import CheckpointDescription

    options = TritonOptions() if options is None else options
    description = CheckpointDescription.read(checkpoint_directory(model))
    name = options.name or _name(model)
    if name.startswith(".") or name != Path(name).name:
        raise InputError(f"name is {name!r}, expected that of a folder")
    config = _config(name, description, options)
    target = Path(output) / name
    if target.exists():
        raise OutputError(f"{target}: is there already: remove it, or choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Made apart and then renamed, for a server may be watching the repository.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as scratch:
            _write(Path(scratch) / name, config, description if options.copy else None)
            (Path(scratch) / name).rename(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{target}: can not be written: {reason}") from None
    return target


def _write(folder: Path, config: str, copied: CheckpointDescription | None) -> None:
    from c2v_engine.model.assemble import copy_checkpoint
    from c2v_engine.runtime.ranges import Ranges

    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (version / "model.py").write_text(_MODEL, encoding="utf-8")
    if copied is not None:
        copy_checkpoint(copied.directory, copied.config, version / CHECKPOINT_FOLDER)
        ranges = Ranges.load(copied.directory)
        if ranges is not None:
            ranges.save(version / CHECKPOINT_FOLDER)


def _name(model: str | Path | None) -> str:
    if model is None:
        return "default"
    return Path(model).resolve().name if Path(model).is_dir() else str(model).rpartition("/")[2]


def _columns(description: CheckpointDescription, options: TritonOptions) -> int:
    """Columns of the output, after all that could be wrong with it was checked."""
    from c2v_engine.kernels.dual_token_pool import output_width
    from c2v_engine.runtime.options import resolve_keep, resolve_normalize, resolve_ranges
    from c2v_engine.runtime.ranges import Ranges

    config, width = description.config, description.decoder_shape.hidden_size
    dimensions = resolve_keep(options.truncate_dim, config.segments, width) * config.segments
    normalize = resolve_normalize(options.normalize, config.normalize)
    resolve_ranges(Ranges.load(description.directory), options.precision, dimensions, normalize)
    return output_width(dimensions, options.precision)


def _config(name: str, description: CheckpointDescription, options: TritonOptions) -> str:
    """The model's ``config.pbtxt``."""
    path = CHECKPOINT_FOLDER if options.copy else str(description.directory.resolve())
    parameters = {"checkpoint": path, "dtype": options.dtype, "precision": options.precision}
    if options.normalize is not None:
        parameters["normalize"] = "true" if options.normalize else "false"
    if options.truncate_dim is not None:
        parameters["truncate_dim"] = str(options.truncate_dim)
    lines = [
        f"name: {_quoted(name)}",
        'backend: "python"',
        f"max_batch_size: {options.max_batch_size}",
        "input [",
        '  { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] },',
        '  { name: "PROMPT_NAME" data_type: TYPE_STRING dims: [ 1 ] optional: true }',
        "]",
        "output [",
        f'  {{ name: "EMBEDDING" data_type: {OUTPUT_TYPES[options.precision]} '
        f"dims: [ {_columns(description, options)} ] }}",
        "]",
        f"instance_group [ {{ count: {options.instances} kind: KIND_{options.kind.upper()} }} ]",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {options.queue_delay}",
        f"  default_queue_policy {{ max_queue_size: {options.queue_size} }}",
        "}",
    ]
    lines += [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        for key, value in parameters.items()
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
