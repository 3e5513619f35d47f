"""How vectors are read off SGLang's hidden states; knows nothing of SGLang."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (its customary name)


def pool_sequences(
    hidden_states: torch.Tensor,
    lengths: torch.Tensor,
    replaced: torch.Tensor | None,
    keep: Sequence[int | None] | None = None,
    *,
    normalize: bool = True,
) -> torch.Tensor | list[torch.Tensor]:
    """Join the overridden row of each sequence and its last to one vector.

    Args:
        hidden_states: ``[tokens, d]`` of all sequences, after the final norm.
        lengths: int ``[sequences]``: rows of each.
        replaced: int64, the overridden rows among all ``tokens``, one of a sequence; None where
            there is none. A sequence without one, as in the server's trial runs, has its first row
            taken.
        keep: for each sequence, dimensions to keep of each row; None for all.
        normalize: whether the joined vector is normalised.

    Returns:
        Float32 ``[sequences, 2 * dimensions]``, or a list of vectors where they differ in width.
    """
    ends = torch.cumsum(lengths, dim=0)
    rows = ends - lengths
    if replaced is not None:
        rows = rows.index_copy(
            0, torch.searchsorted(ends, replaced, right=True), replaced.to(rows.dtype)
        )
    pooled = torch.stack([hidden_states[rows], hidden_states[ends - 1]], dim=1).float()
    width = pooled.shape[2]
    halves = [width if one is None else one for one in keep or [None] * len(pooled)]
    if len(set(halves)) > 1:
        parts = zip(pooled, halves, strict=True)
        return [_joined(one[None, :, :half], normalize)[0] for one, half in parts]
    return _joined(pooled[..., : halves[0]] if halves else pooled, normalize)


def _joined(pooled: torch.Tensor, normalize: bool) -> torch.Tensor:
    embeddings = pooled.flatten(1)
    return F.normalize(embeddings, dim=1) if normalize else embeddings
