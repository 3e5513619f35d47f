"""What the tests of packed attention share: random cases, and the definition in float64."""

from typing import NamedTuple

import torch


class Case(NamedTuple):
    """Tensor arguments of the op; query, key and value are views of one fused buffer."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    cu_seqlens: torch.Tensor

    def lengths(self):
        return self.cu_seqlens.diff().tolist()

    def of(self, sequence):
        """The case of one sequence alone."""
        first, last = self.cu_seqlens[sequence : sequence + 2].tolist()
        alone = self.cu_seqlens.new_tensor([0, last - first])
        return Case(*(x[first:last] for x in self[:3]), alone)

    def at(self, rows):
        return self._replace(query=self.query[rows.long()])


def make_case(lengths, heads=2, kv_heads=2, head_dim=64, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(sum(lengths) * 1000 + heads * 10 + head_dim)
    sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    fused = torch.randn(sum(lengths), sum(sizes) + 3, generator=generator).to(device, dtype)
    parts = fused[:, : sum(sizes)].split(sizes, dim=1)
    ends = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    return Case(*(part.unflatten(1, (-1, head_dim)) for part in parts), ends)


# Queries of a text, and the keys that stand before its own: every two of these.
EVERY_TEXT = [(queries, before) for queries in (5, 0, 123, 1) for before in (0, 33, 1, 200)]


class LastRows(NamedTuple):
    """A case of which only the last rows of every sequence are queries.

    Attributes:
        case: with the queries of all rows, as ``assert_agrees`` wants it.
        rows: packed rows that are queries.
        cu_seqlens_q: of those.
    """

    case: Case
    rows: torch.Tensor
    cu_seqlens_q: torch.Tensor

    def arguments(self):
        """Tensor arguments of the op; the queries are views of a fused buffer of their own."""
        fused = torch.nn.functional.pad(self.case.at(self.rows).query, (0, 0, 1, 2))
        return self.case._replace(query=fused[:, 1:-2])

    def of(self, sequence):
        """The one sequence alone."""
        begin, end = self.cu_seqlens_q[sequence : sequence + 2].tolist()
        first = self.case.cu_seqlens[sequence]
        offsets = self.cu_seqlens_q.new_tensor([0, end - begin])
        return LastRows(self.case.of(sequence), self.rows[begin:end] - first, offsets)


def make_last_rows(texts, *args, **kwargs):
    """The case of texts that are given as their number of queries and of keys before these."""
    case = make_case([queries + before for queries, before in texts], *args, **kwargs)
    ends = torch.tensor([0, *(queries for queries, _ in texts)]).cumsum(0).int()
    rows = [
        torch.arange(int(end) - queries, int(end))
        for (queries, _), end in zip(texts, case.cu_seqlens[1:], strict=True)
    ]
    rows = torch.cat([torch.zeros(0), *rows]).int()
    return LastRows(case, rows.to(case.query.device), ends.to(case.query.device))


def amid(case, value):
    """The same tensors, each between 16 rows of one value on either side of it."""

    def surrounded(x):
        buffer = x.new_full((len(x) + 32, *x.shape[1:]), value)
        return buffer[16:-16].copy_(x)

    return Case(*(surrounded(x) for x in case[:3]), case.cu_seqlens)


def float64_attention(case, causal=True, window=None, scale=None):
    """The definition in float64: the outputs, and what they are for the values' magnitudes."""
    case = Case(*(x.cpu() for x in case))
    scale = case.query.shape[-1] ** -0.5 if scale is None else scale
    outputs, magnitudes = [], []
    group = case.query.shape[1] // case.key.shape[1]
    for b in range(len(case.lengths())):
        q, k, v = (x.double().transpose(0, 1) for x in case.of(b)[:3])
        k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
        distance = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        seen = distance >= 0 if causal else torch.ones_like(distance).bool()
        if window is not None:
            seen = seen & (distance.abs() < window)
        scores = q @ k.mT * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        outputs.append((weights @ v).transpose(0, 1))
        magnitudes.append((weights @ v.abs()).transpose(0, 1))
    return torch.cat(outputs), torch.cat(magnitudes)


# What is left of a weight, and of the output, when it is rounded. A weight of float16 below 2^-14
# keeps no more than 2^-25, of which some hundred may add up beside a sum of weights over 1.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float32: 0.0, torch.float16: 2.0**-17, torch.bfloat16: 0.0}
# The bounds that every op keeps as a whole; what it is off row by row is bounded above.
NORM = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def assert_agrees(actual, case, rows=None, float32=2e-6, scale=None, **mask):
    """Within ``float32`` of the magnitudes that are added up in float32, and in 16 bits within what
    its rounding costs at most: of each weight, so of the magnitudes, and of the output.

    Args:
        actual: what the op gave.
        case: that it was given, with the queries of all rows.
        rows: that were chosen, or None.
        float32: relative error of float32 sums and exponentials.
        scale: of the scores.
        mask: causal and window.
    """
    expected, magnitude = float64_attention(case, scale=scale, **mask)
    if rows is not None:
        expected, magnitude = expected[rows.cpu().long()], magnitude[rows.cpu().long()]
    dtype = actual.dtype
    error = (actual.cpu().double() - expected).abs()
    rounding = ROUNDING[dtype] * (1 + ROUNDING[dtype]) * (magnitude + expected.abs())
    excess = error - (float32 * magnitude + rounding + SMALLEST[dtype])
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    assert dtype == case.key.dtype
    assert excess.max() <= 0, f"beyond the bound by {excess.max():.1e}"
    assert error.norm() < NORM[dtype] * expected.norm()
