"""A checkpoint's fingerprint: whether two models are the same, without reading all their weights.

The config is hashed by its values, a component's config and tokenizer files as they are. Of a
weights file the length, the first 64 KiB, which hold the names and shapes of its tensors, and 64
blocks of 4 KiB at equal distances are hashed: training moves every weight a little, so that no copy
that was trained on goes unseen, and a checkpoint of 15 GB takes a few reads.
"""

from __future__ import annotations

import json
import os
from hashlib import blake2b
from pathlib import Path

from c2v_engine.errors import CheckpointError
from c2v_engine.model.assemble import MODEL_FILES
from c2v_engine.model.config import Causal2VecConfig
from c2v_engine.model.projector import PROJECTOR_NAME
from c2v_engine.model.summary import SUMMARY_NAME

_HEAD_BYTES = 64 * 1024
_BLOCKS, _BLOCK_BYTES = 64, 4096


def checkpoint_fingerprint(directory: Path, config: Causal2VecConfig) -> str:
    """Give 16 hexadecimal digits that stand for a checkpoint's config, tokenizers and weights.

    Args:
        directory: the checkpoint's.
        config: its ``config.json``, which names the folders that belong to it.

    Raises:
        CheckpointError: a file can not be read, or a folder holds no weights.
    """
    folders = [config.decoder.path, config.decoder.adapter]
    folders += [config.encoder.path] if config.encoder is not None else []
    files = [directory / PROJECTOR_NAME] if config.projector is not None else []
    files += [directory / SUMMARY_NAME] if config.summary_tokens else []
    for folder in folders:
        files += _model_files(directory / folder) if folder is not None else []
    values = json.dumps(config.to_dict(), sort_keys=True)
    digest = blake2b(values.encode(), digest_size=8)
    try:
        for path in files:
            name = path.relative_to(directory).as_posix()
            digest.update(f"\0{name}\0{path.stat().st_size}\0".encode())
            _update(digest, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{error.filename}: can not be read: {reason}") from error
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern)}
    files = sorted(path for path in found if path.is_file())
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{folder}: holds no weights (*.safetensors)")
    return files


def _update(digest: blake2b, path: Path) -> None:
    if path.suffix != ".safetensors":
        digest.update(path.read_bytes())
        return
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        rest = os.fstat(file.fileno()).st_size - _HEAD_BYTES
        for number in range(_BLOCKS if rest > 0 else 0):
            file.seek(_HEAD_BYTES + max(0, rest - _BLOCK_BYTES) * number // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
