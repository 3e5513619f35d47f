"""QK-norm and rotary embedding against float64, the reference and transformers."""

from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch
from far_rows import far_rows
from interpreter import forms, triton_form
from row_cases import DTYPES, SIXTEEN_BIT, assert_rounded_alike, random, with_row_stride
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from c2v_engine.errors import InputError
from c2v_engine.kernels.qk_norm_rope import qk_norm_rope_, qk_norm_rope_reference_

EPS = 1e-6
POSITIONS = 50
HEAD_DIMS = [2, 20, 24, 64, 80, 96, 128]
FORMS = forms(qk_norm_rope_, qk_norm_rope_reference_)
ON_CPU, ON_CUDA = FORMS[:2], FORMS[2:]
RELATIVE_NORM = {torch.float32: 1e-5, torch.bfloat16: 1e-2}

pytestmark = pytest.mark.usefixtures("compiled")


class Case(NamedTuple):
    """Arguments of the op."""

    qkv: torch.Tensor
    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    num_query_heads: int
    num_key_heads: int
    head_dim: int
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    eps: float = EPS
    bias: torch.Tensor | None = None

    def run(self, op=qk_norm_rope_):
        """What the op makes of a copy of qkv."""
        qkv = self.qkv.clone()
        assert op(**{**self._asdict(), "qkv": qkv}) is None
        return qkv

    def args(self):
        """In the order of the schema."""
        counts = (self.num_query_heads, self.num_key_heads, self.head_dim)
        return (self.qkv, *counts, *self[1:4], *self[7:])


def make_case(rows, head_dim, dtype, heads=(4, 2), norm=False, device="cpu", values=2):
    generator = torch.Generator().manual_seed(rows + head_dim)
    angles = torch.rand(POSITIONS, head_dim // 2, generator=generator) * 7
    norms = [(random(head_dim, seed=s) * 0.2 + 1).to(device, dtype) for s in (5, 6)]
    return Case(
        random(rows, (sum(heads) + values) * head_dim, dtype=dtype, scale=2).to(device),
        torch.randint(0, POSITIONS, (rows,), generator=generator).int().to(device),
        angles.cos().to(device, dtype),
        angles.sin().to(device, dtype),
        *heads,
        head_dim,
        *(norms if norm else (None, None)),
    )


def with_bias(case, scale=1.0):
    """The case with a bias of all columns, and the case in which it was already added."""
    bias = random(case.qkv.shape[1], seed=7, scale=scale).to(case.qkv)
    return case._replace(bias=bias), case._replace(qkv=case.qkv + bias)


def float64_rotation(case):
    expected = case.qkv.double()
    size = case.head_dim
    angles = (case.cos.double(), case.sin.double())
    cos, sin = (table[case.positions.long()].unsqueeze(1) for table in angles)
    start = 0
    for heads, norm in (
        (case.num_query_heads, case.query_norm),
        (case.num_key_heads, case.key_norm),
    ):
        if heads == 0:
            continue
        states = expected[:, start : start + heads * size].unflatten(1, (heads, size)).clone()
        if norm is not None:
            inverse = (states.square().mean(dim=-1, keepdim=True) + case.eps).rsqrt()
            states = states * inverse * norm.double()
        first, second = states.chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        expected[:, start : start + heads * size] = rotated.flatten(1)
        start += heads * size
    return expected


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 123])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_float32_agrees_with_float64(head_dim, rows, norm, op):
    case = make_case(rows, head_dim, torch.float32, norm=norm, device=op.device)
    # Two products of values of up to 10 may cancel; each errs by a few units of 2^-24.
    torch.testing.assert_close(
        case.run(op).double(), float64_rotation(case), rtol=2.0**-20, atol=2.0**-18
    )


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("tokens", "head_dim", "heads"),
    [
        (1, 256, (8, 4)),
        (4097, 4, (2, 1)),
        (30_000, 2, (1, 1)),
        (0, 64, (4, 2)),
        (3, 8192, (1, 1)),
        (3, 9000, (1, 1)),
    ],
)
@pytest.mark.parametrize("dtype", RELATIVE_NORM)
def test_batches_of_every_size_agree_with_float64(dtype, tokens, head_dim, heads, norm, op):
    case = make_case(tokens, head_dim, dtype, heads, norm, op.device, values=0)
    expected = float64_rotation(case)
    # What does not belong to the heads is not to be read.
    qkv, buffer = with_row_stride(case.qkv, torch.nan)
    op(**{**case._asdict(), "qkv": qkv})
    assert (qkv.double() - expected).norm() <= RELATIVE_NORM[dtype] * expected.norm()
    assert buffer[:, qkv.shape[1] :].isnan().all()


@pytest.mark.parametrize("op", [*FORMS[:1], *ON_CUDA])
@pytest.mark.parametrize("rows", [1, 5, 123])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_a_sixteen_bit_rotation_has_the_bits_of_the_reference(dtype, head_dim, rows, op):
    case = make_case(rows, head_dim, dtype, device=op.device)
    assert torch.equal(case.run(op), case.run(qk_norm_rope_reference_))


@pytest.mark.parametrize("op", [*FORMS[:1], *ON_CUDA])
@pytest.mark.parametrize("rows", [1, 5, 123])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_a_sixteen_bit_norm_is_rounded_as_by_the_reference(dtype, head_dim, rows, op):
    # With a quarter turn nothing is added, so that ulps tell how the norm was rounded.
    case = make_case(rows, head_dim, dtype, norm=True, device=op.device)
    still = case._replace(cos=torch.zeros_like(case.cos), sin=torch.ones_like(case.sin))
    assert_rounded_alike(still.run(op), still.run(qk_norm_rope_reference_))
    # In general the rotation of values one ulp apart: 2^-7 of up to 10, twice.
    torch.testing.assert_close(case.run(op), case.run(qk_norm_rope_reference_), rtol=0, atol=0.16)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("rows", [0, 5, 123])
@pytest.mark.parametrize("head_dim", [2, 20, 80])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_added_to_all_columns_first_and_rounded(dtype, head_dim, rows, norm, op):
    case, added = with_bias(make_case(rows, head_dim, dtype, norm=norm, device=op.device))
    assert torch.equal(case.run(op), added.run(op))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("values", [1, 7, 12, 13, 23, 25])
@pytest.mark.parametrize("heads", [(4, 2), (0, 1), (0, 0)])
def test_a_bias_reaches_values_that_are_no_whole_heads(heads, values, op):
    case = make_case(5, 24, torch.bfloat16, heads, device=op.device)
    width = sum(heads) * 24 + values
    case, added = with_bias(case._replace(qkv=case.qkv.repeat(1, 2)[:, :width].contiguous()))
    expected = added.run(qk_norm_rope_reference_)
    qkv, buffer = with_row_stride(case.qkv)
    op(**{**case._asdict(), "qkv": qkv})
    assert torch.equal(qkv, expected)
    assert bool((buffer[:, width:] == 7).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_stays_alone_among_the_values(value, op):
    case, added = with_bias(make_case(5, 24, torch.float16, device=op.device))
    case.qkv[2, 6 * 24 + 3] = added.qkv[2, 6 * 24 + 3] = value
    torch.testing.assert_close(case.run(op), added.run(op), rtol=0, atol=0, equal_nan=True)
    assert case.run(op)[:, 6 * 24 :].isfinite().sum() == 5 * 2 * 24 - 1


def test_every_nan_of_bfloat16_stays_nan_under_a_bias():
    bits = torch.cat([torch.arange(0x7F81, 0x8000), torch.arange(0xFF81, 0x10000)])
    nans = (bits - 0x10000 * (bits >= 0x8000)).to(torch.int16).view(torch.bfloat16)[:, None]
    case = make_case(len(nans), 24, torch.bfloat16)
    ones = torch.ones_like(case.qkv[0])
    assert case._replace(qkv=nans.repeat(1, 8 * 24), bias=ones).run().isnan().all()
    assert case._replace(bias=nans[0].repeat(8 * 24)).run().isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_rotation_of_transformers(dtype):
    case = make_case(5, 24, dtype, values=0)
    full = [table[case.positions.long()].repeat(1, 2) for table in (case.cos, case.sin)]
    query, key = case.qkv.split((4 * 24, 2 * 24), dim=1)
    rotated = apply_rotary_pos_emb(query.unflatten(1, (4, 24)), key.unflatten(1, (2, 24)), *full)
    expected = torch.cat([heads.flatten(1) for heads in rotated], dim=1)
    assert torch.equal(case.run(qk_norm_rope_reference_), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_what_lies_between_rows_are_left_alone(dtype, norm, op):
    case = make_case(5, 24, dtype, norm=norm, device=op.device)
    expected = case.run(op)
    assert torch.equal(expected[:, 6 * 24 :], case.qkv[:, 6 * 24 :])
    qkv, buffer = with_row_stride(case.qkv)
    op(**{**case._asdict(), "qkv": qkv})
    assert torch.equal(qkv, expected)
    assert bool((buffer[:, 8 * 24 :] == 7).all())


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_and_keys_may_be_rotated_apart(dtype, norm, op):
    plain = make_case(5, 64, dtype, norm=norm, device=op.device)
    for case in (plain, with_bias(plain)[0]):
        apart = case.qkv.clone()
        query, key = case._asdict(), case._asdict()
        query |= {"qkv": apart[:, : 4 * 64], "num_key_heads": 0}
        key |= {"qkv": apart[:, 4 * 64 :], "num_query_heads": 0}
        if case.bias is not None:
            query["bias"], key["bias"] = case.bias[: 4 * 64], case.bias[4 * 64 :]
        op(**query)
        op(**key)
        assert torch.equal(apart, case.run(op))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_only_one_of_the_norms_may_be_given(dtype, op):
    plain = make_case(5, 24, dtype, norm=True, device=op.device)
    for both in (plain, with_bias(plain)[0]):
        neither = both._replace(query_norm=None, key_norm=None).run(op)
        query = both._replace(key_norm=None).run(op)
        assert torch.equal(query[:, : 4 * 24], both.run(op)[:, : 4 * 24])
        assert torch.equal(query[:, 4 * 24 :], neither[:, 4 * 24 :])
        key = both._replace(query_norm=None).run(op)
        assert torch.equal(key[:, : 4 * 24], neither[:, : 4 * 24])
        assert torch.equal(key[:, 4 * 24 :], both.run(op)[:, 4 * 24 :])


@pytest.mark.parametrize("op", FORMS)
def test_no_heads_leave_everything_as_it_is(op):
    case = make_case(5, 24, torch.float32, heads=(0, 0), device=op.device)
    assert torch.equal(case.run(op), case.qkv)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_that_are_read_may_have_any_strides(dtype, op):
    case, _ = with_bias(make_case(5, 24, dtype, norm=True, device=op.device))
    scattered = case._replace(
        positions=torch.stack([case.positions] * 2, dim=1)[:, 0],
        cos=case.cos.t().contiguous().t(),
        sin=with_row_stride(case.sin)[0],
        query_norm=torch.stack([case.query_norm] * 2, dim=1)[:, 0],
        bias=torch.stack([case.bias] * 2, dim=1)[:, 0],
    )
    assert torch.equal(scattered.run(op), case.run(op))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_alone_gives_the_same_bits_as_among_others(dtype, norm, op):
    for case in with_bias(make_case(123, 80, dtype, norm=norm, device=op.device)):
        alone = case._replace(qkv=case.qkv[77:78], positions=case.positions[77:78])
        assert torch.equal(alone.run(op), case.run(op)[77:78])


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_shows_in_its_pair_or_with_the_norm_in_its_head(dtype, op):
    case = make_case(5, 24, dtype, device=op.device)
    case.qkv[2, 24 + 3] = torch.nan
    assert case.run(op).isnan().nonzero().tolist() == [[2, 24 + 3], [2, 24 + 15]]
    norms = make_case(5, 24, dtype, norm=True, device=op.device)[7:9]
    normed = case._replace(query_norm=norms[0], key_norm=norms[1]).run(op)
    assert normed.isnan().nonzero().tolist() == [[2, 24 + i] for i in range(24)]


OUTSIDE = [-1, POSITIONS, 2**31 - 1, -(2**31)]


@pytest.mark.parametrize("op", ON_CPU)
@pytest.mark.parametrize("position", OUTSIDE)
def test_a_position_outside_of_the_tables_is_an_error_on_the_cpu(position, op):
    case = make_case(5, 24, torch.float32)
    case.positions[3] = position
    with pytest.raises(RuntimeError, match=r"position.*the tables have 50 positions"):
        case.run(op)


@pytest.mark.parametrize("op", ON_CUDA)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("position", OUTSIDE)
def test_a_position_outside_of_the_tables_makes_its_heads_nan_on_cuda(position, norm, op):
    plain = make_case(5, 24, torch.float32, norm=norm, device=op.device)
    for case in (plain, with_bias(plain)[0]):
        known = case.run(op)
        case.positions[3] = position
        # The rows around the tables are there to be read by mistake.
        cos, sin = (torch.nn.functional.pad(t, (0, 0, 1, 1))[1:-1] for t in (case.cos, case.sin))
        rotated = case._replace(cos=cos, sin=sin).run(op)
        assert rotated[3, : 6 * 24].isnan().all()
        assert torch.equal(rotated[3, 6 * 24 :], known[3, 6 * 24 :])
        others = [0, 1, 2, 4]
        assert torch.equal(rotated[others], known[others])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("position", OUTSIDE)
def test_a_position_outside_of_the_tables_makes_the_heads_of_the_reference_nan_on_cuda(position):
    case = make_case(5, 24, torch.float32, device="cuda")
    case.positions[3] = position
    outside = case.run(qk_norm_rope_reference_)[:, : 6 * 24].isnan()
    assert outside.all(dim=1).tolist() == [False, False, False, True, False]
    assert outside.any(dim=1).tolist() == [False, False, False, True, False]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("norm", [False, True])
def test_offsets_beyond_two_to_the_31_are_right(norm):
    op = triton_form(qk_norm_rope_)
    case, _ = with_bias(make_case(3, 24, torch.bfloat16, norm=norm, device=op.device))
    far = far_rows(case.qkv)
    op(**{**case._asdict(), "qkv": far})
    assert torch.equal(far, case.run(op))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype, norm):
    plain = make_case(5, 24, dtype, norm=norm)
    for case in (plain, with_bias(plain)[0]):
        results = torch.library.opcheck(torch.ops.c2v.qk_norm_rope_.default, case.args())
        assert set(results.values()) == {"SUCCESS"}


WRONG = [
    ({"qkv": torch.zeros(24)}, r"qkv is \[24\] float32", "qkv must be"),
    ({"qkv": torch.zeros(192, 5).t()}, "qkv is written in place", "qkv is written in place"),
    ({"qkv": torch.zeros(5, 143)}, "qkv is .*at least 6 heads of 24, 144 columns", "too few for 6"),
    ({"head_dim": 23}, "head_dim is 23; .*even", "head_dim must be even"),
    ({"head_dim": 0}, "head_dim is 0", "head_dim must be even"),
    ({"num_query_heads": -1}, "num_query_heads is -1", "head counts must not be negative"),
    ({"positions": torch.zeros(5).long()}, "positions is .*int64", r"positions must be int32 \[5"),
    ({"positions": torch.zeros(4).int()}, r"positions is \[4\]", r"positions must be int32 \[5"),
    ({"cos": torch.zeros(12)}, r"cos is \[12\]", r"cos must be \[positions, head_dim / 2\]"),
    ({"cos": torch.zeros(50, 24)}, r"cos is \[50, 24\].*\[50, 12\]", r"cos must be \[50, 12\]"),
    ({"sin": torch.zeros(49, 12)}, r"sin is \[49, 12\].*\[50, 12\]", r"sin must be \[50, 12\]"),
    ({"sin": torch.zeros(50, 12).half()}, "sin is .*float16", "sin must have the first argument's"),
    ({"query_norm": torch.ones(12)}, r"query_norm is \[12\]", r"query_norm must be \[24\]"),
    ({"key_norm": torch.ones(12)}, r"key_norm is \[12\]", r"key_norm must be \[24\]"),
    ({"bias": torch.ones(144)}, r"bias is \[144\].*\[192\]", r"bias must be \[192\]"),
    ({"bias": torch.ones(192).half()}, "bias is .*float16", "bias must have the first argument's"),
]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(("change", "message", "_"), WRONG)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, _, op):
    case = make_case(5, 24, torch.float32)._asdict()
    with pytest.raises(InputError, match=message):
        op(**{**case, **change})


@pytest.mark.parametrize(("change", "_", "message"), WRONG)
def test_the_compiled_op_itself_refuses_wrong_arguments(change, _, message):
    args = make_case(5, 24, torch.float32)._replace(**change).args()
    with pytest.raises(RuntimeError, match=f"qk_norm_rope_: .*{message}"):
        torch.ops.c2v.qk_norm_rope_(*args)
