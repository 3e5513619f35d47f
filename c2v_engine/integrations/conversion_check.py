"""How near a converted checkpoint comes to sentence-transformers' own embeddings."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from c2v_engine.engine import Causal2Vec
from c2v_engine.errors import CheckpointError, MissingPackageError


def largest_differences(
    source: str | Path, checkpoint: str | Path, texts: Sequence[str]
) -> dict[str | None, float]:
    """Embed texts with the source and with the checkpoint, both in float32 on the CPU.

    The models are held one after the other.

    Args:
        source: what was converted, a folder or the id of a Hub repository.
        checkpoint: what it was converted to.
        texts: at least one.

    Returns:
        For no prompt name (the default prompt, where there is one) and for each of the
        checkpoint's, the largest difference of two components.

    Raises:
        MissingPackageError: sentence-transformers is not installed.
        CheckpointError: sentence-transformers can not load the source, or not embed with it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingPackageError("sentence-transformers", "sentence-transformers") from error
    with Causal2Vec.from_pretrained(checkpoint, device="cpu", dtype="float32") as engine:
        names = [None, *engine.prompts]
        normalize = engine.config.normalize
        found = [engine.encode(list(texts), prompt_name=name) for name in names]
    del engine
    gc.collect()
    try:
        stock = SentenceTransformer(
            str(source), device="cpu", model_kwargs={"torch_dtype": "float32"}
        )
    except Exception as error:  # whatever transformers and sentence-transformers raise
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: sentence-transformers refuses it: {reason}") from None
    try:
        expected = [
            stock.encode(list(texts), prompt_name=name, normalize_embeddings=normalize)
            for name in names
        ]
    except Exception as error:  # of a tokenizer without a padding token, ...
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{source}: sentence-transformers can not embed with it, so that {checkpoint}, which "
            f"is made, was compared with nothing: {reason}"
        ) from None
    return {
        name: float(np.abs(ours - theirs).max())
        for name, ours, theirs in zip(names, found, expected, strict=True)
    }
