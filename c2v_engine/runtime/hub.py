"""Fetching a checkpoint from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from c2v_engine.errors import CheckpointError
from c2v_engine.model.assemble import MODEL_FILES


def fetch_checkpoint(repo: str) -> Path:
    """Download a repository, or find it in the local cache.

    Args:
        repo: ``organisation/name``.

    Returns:
        The directory of its snapshot.

    Raises:
        CheckpointError: no such directory or repository, or no network.
    """
    if repo.count("/") != 1 or repo.startswith(("/", ".", "~")):
        raise CheckpointError(f"{repo}: no such directory, and not the id of a Hub repository")
    from huggingface_hub import snapshot_download

    patterns = [*MODEL_FILES, *(f"*/{pattern}" for pattern in MODEL_FILES)]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # the client raises network, HTTP, cache and validation errors
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{repo}: no such directory, and it can not be fetched from the Hub: {reason}"
        ) from None
