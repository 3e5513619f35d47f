"""Arguments for the pooling op: ragged random batches, and one that pools a given vector."""

from typing import NamedTuple

import torch

from c2v_engine.kernels.dual_token_pool import dual_token_pool

EPS = 1e-6
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


class Case(NamedTuple):
    """Arguments of the op."""

    hidden_states: torch.Tensor
    rows: torch.Tensor
    offsets: torch.Tensor
    norm_weight: torch.Tensor
    eps: float
    segments: int
    keep: int
    ranges: torch.Tensor

    def run(self, op=dual_token_pool, normalize=True, precision="float32", validate=True):
        return op(
            self.hidden_states,
            self.rows,
            self.offsets,
            self.norm_weight,
            eps=self.eps,
            segments=self.segments,
            keep=self.keep,
            normalize=normalize,
            precision=precision,
            ranges=self.ranges,
            validate=validate,
        )


def make_case(
    batch=3,
    hidden=123,
    keep=5,
    segments=2,
    most_rows=4,
    dtype=torch.float32,
    weight_dtype=None,
    device="cpu",
):
    """A batch with `most_rows` or fewer rows in a segment, taken from shuffled hidden states."""
    generator = torch.Generator().manual_seed(batch * 1000 + hidden + keep)
    lengths = torch.randint(1, most_rows + 1, (batch * segments,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    total = int(offsets[-1])
    tokens = total + 7
    hidden_states = torch.randn(tokens, hidden, generator=generator) * 3
    rows = torch.randperm(tokens, generator=generator)[:total].int()
    norm_weight = torch.rand(hidden, generator=generator) + 0.5
    low = -torch.rand(segments * keep, generator=generator) / keep**0.5
    ranges = torch.stack([low, -0.9 * low])
    ranges[:, 0] = 0.01  # a dimension that never varied
    return Case(
        hidden_states.to(device, dtype),
        rows.to(device),
        offsets.to(device),
        norm_weight.to(device, weight_dtype or dtype),
        EPS,
        segments,
        keep,
        ranges.to(device),
    )


def one_row_case(weight):
    """A case whose pooled vector is exactly `weight`: one row of ones, whose RMS is 1."""
    width = len(weight)
    index = torch.tensor([0], dtype=torch.int32)
    return Case(
        torch.ones(1, width),
        index,
        torch.tensor([0, 1], dtype=torch.int32),
        weight,
        0.0,
        1,
        width,
        torch.stack([torch.full((width,), -1.0), torch.full((width,), 1.0)]),
    )
