"""What packed attention does with arguments and indices that are wrong."""

import math

import numpy as np
import pytest
import torch

from c2v_engine.errors import InputError
from c2v_engine.kernels.packed_attention import (
    MAX_TOKENS,
    packed_attention,
    packed_attention_reference,
    row_bounds,
)

INT = torch.int32
OPS = [packed_attention, packed_attention_reference]


def arguments(**change):
    given = {
        "query": torch.zeros(9, 4, 16),
        "key": torch.zeros(9, 2, 16),
        "value": torch.zeros(9, 2, 16),
        "cu_seqlens": torch.tensor([0, 4, 9], dtype=INT),
        "max_seqlen": 5,
        "causal": True,
        "scale": 0.25,
        "window": None,
        "query_rows": None,
        "row_bounds": None,
        "cu_seqlens_q": None,
    }
    return {**given, **change}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(9, 64)}, r"query is \[9, 64\] float32"),
        ({"query": torch.zeros(9, 4, 16).double()}, "query is .*float64.*expected"),
        ({"query": torch.zeros(9, 4, 257)}, "from 1 to 256"),
        ({"query": torch.zeros(9, 4, 0)}, "from 1 to 256"),
        ({"query": torch.zeros(8, 4, 16)}, r"query is \[8, 4, 16\].*the 9 rows of key"),
        ({"query": torch.zeros(9, 3, 16)}, "kv_heads that divides the 3 heads of query"),
        ({"key": torch.zeros(9, 2, 15)}, r"expected \[tokens, kv_heads, 16\] float32"),
        ({"key": torch.zeros(9, 2, 16).bfloat16()}, "key is .*bfloat16.*float32, as query is"),
        ({"key": torch.zeros(9, 0, 16)}, r"key is \[9, 0, 16\]"),
        ({"value": torch.zeros(8, 2, 16)}, r"value is \[8, 2, 16\].*expected \[9, 2, 16\]"),
        ({"value": torch.zeros(9, 2, 16).half()}, "value is .*float16"),
        ({"cu_seqlens": torch.tensor([0, 4, 9])}, r"cu_seqlens is \[3\] int64"),
        ({"cu_seqlens": torch.zeros(0, dtype=INT)}, r"cu_seqlens is \[0\]"),
        ({"max_seqlen": -1}, "max_seqlen is -1"),
        ({"max_seqlen": 5.5}, "max_seqlen is 5.5"),
        ({"max_seqlen": True}, "max_seqlen is True"),
        ({"window": 0}, r"window is 0; give an int from 1 to 2\^31 - 1, or None"),
        ({"window": -1}, "window is -1"),
        ({"window": 2**31}, "window is 2147483648"),
        ({"window": True}, "window is True"),
        ({"window": 2.0}, "window is 2.0"),
        ({"window": math.nan}, "window is nan"),
        ({"window": "5"}, "window is '5'"),
        ({"scale": math.nan}, "scale is nan; expected a number that is finite in float32"),
        ({"scale": -math.inf}, "scale is -inf"),
        ({"scale": 1e39}, r"scale is 1e\+39"),
        ({"scale": None}, "scale is None"),
        ({"scale": torch.tensor(0.25)}, r"scale is tensor\(0.2500\)"),
        ({"query": torch.zeros(9, 65_536, 1)}, r"query is \[9, 65536, 1\].*at most 65535 heads"),
        ({"query_rows": torch.zeros(8, dtype=INT)}, r"query_rows is \[8\].*expected \[9\]"),
        ({"query_rows": torch.zeros(9, dtype=INT)}, "as many of each of 2 sequences"),
        ({"query_rows": torch.zeros(9)}, "query_rows is .*float32"),
        ({"key": torch.zeros(9, 2, 16, device="meta")}, "on meta; expected"),
        (
            {"row_bounds": torch.zeros(9, 3, dtype=INT)},
            r"row_bounds is \[9, 3\].*expected \[3, 9\]",
        ),
        ({"row_bounds": torch.zeros(3, 9)}, "row_bounds is .*float32"),
        ({"row_bounds": torch.zeros(3, 9, dtype=INT, device="meta")}, "row_bounds is .*on meta"),
        (
            {"cu_seqlens_q": torch.zeros(2, dtype=INT)},
            r"cu_seqlens_q is \[2\].*expected \[3\] int32, as cu_seqlens is",
        ),
        ({"cu_seqlens_q": torch.zeros(3)}, "cu_seqlens_q is .*float32"),
        ({"cu_seqlens_q": torch.zeros(3, dtype=INT, device="meta")}, "cu_seqlens_q is .*on meta"),
        (
            {
                "cu_seqlens_q": torch.zeros(3, dtype=INT),
                "query": torch.zeros(7, 4, 16),
                "row_bounds": torch.zeros(3, 9, dtype=INT),
            },
            r"row_bounds is \[3, 9\].*expected \[3, 7\]",
        ),
        (
            {"cu_seqlens_q": torch.zeros(3, dtype=INT), "query_rows": torch.zeros(9, dtype=INT)},
            "query_rows and cu_seqlens_q are both given; expected one of them",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(op, change, message):
    with pytest.raises(InputError, match=message):
        op(**arguments(**change))


@pytest.mark.parametrize("op", OPS)
def test_more_tokens_than_int32_counts_are_refused(op):
    # without values, so that nobody asks for the memory of so many
    query, many = (torch.zeros(rows, 2, 16, device="meta") for rows in (2, MAX_TOKENS + 1))
    offsets, rows = (torch.zeros(size, dtype=INT, device="meta") for size in (3, 2))
    given = {"query": query, "key": many, "value": many, "cu_seqlens": offsets, "query_rows": rows}
    with pytest.raises(InputError, match=r"key is .*at most 2147482624 tokens"):
        op(**arguments(**given))
    given = {"query": many, "key": query, "value": query, "cu_seqlens": offsets}
    with pytest.raises(InputError, match=r"query is .*at most 2147482624 rows"):
        op(**arguments(**given, cu_seqlens_q=offsets))


@pytest.mark.parametrize("op", OPS)
def test_more_queries_than_keys_are_refused(op):
    given = {"query": torch.zeros(10, 4, 16), "cu_seqlens_q": torch.tensor([0, 5, 10], dtype=INT)}
    with pytest.raises(InputError, match=r"sequence 0 a length of 5; .* its keys, 4"):
        op(**arguments(**given))


@pytest.mark.parametrize("op", OPS)
def test_numbers_may_be_numpy_s(op):
    given = arguments(query=torch.randn(9, 4, 16), key=torch.randn(9, 2, 16), window=3)
    expected = op(**given)
    numbers = {"max_seqlen": np.int64(5), "window": np.int32(3), "scale": np.float32(0.25)}
    assert torch.equal(op(**{**given, **numbers}), expected)


WRONG_VALUES = pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": [1, 4, 9]}, "cu_seqlens runs from 1 to 9; expected from 0 to the 9 rows"),
        ({"cu_seqlens": [0, 4, 8]}, "cu_seqlens runs from 0 to 8; expected from 0 to the 9 rows"),
        ({"cu_seqlens": [0]}, "cu_seqlens runs from 0 to 0"),
        ({"cu_seqlens": [0, 10, 9]}, "cu_seqlens gives sequence 0 a length of 10"),
        ({"cu_seqlens": [0, 5, 4, 9]}, "cu_seqlens gives sequence 1 a length of -1"),
        ({"max_seqlen": 4}, "cu_seqlens gives sequence 1 a length of 5; .* max_seqlen, 4"),
        ({"query_rows": [3, 9]}, r"query_rows\[1\] is 9, but sequence 1 has the rows 4 to 9"),
        ({"query_rows": [4, 8]}, r"query_rows\[0\] is 4, but sequence 0 has the rows 0 to 4"),
        ({"query_rows": [-1, 8]}, r"query_rows\[0\] is -1"),
        ({"cu_seqlens_q": [1, 4, 9]}, "cu_seqlens_q runs from 1 to 9; .* 0 to the 9 rows of query"),
        ({"cu_seqlens_q": [0, 4, 8]}, "cu_seqlens_q runs from 0 to 8"),
        (
            {"cu_seqlens_q": [0, 5, 9]},
            "cu_seqlens_q gives sequence 0 a length of 5; .* its keys, 4",
        ),
        (
            {"cu_seqlens_q": [0, 3, 9]},
            "cu_seqlens_q gives sequence 1 a length of 6; .* its keys, 5",
        ),
        ({"cu_seqlens_q": [0, -1, 9]}, "cu_seqlens_q gives sequence 0 a length of -1"),
        ({"cu_seqlens_q": [0, 2**31 - 1, 9]}, "sequence 0 a length of 2147483647"),
    ],
)


def with_values(change):
    change = {k: torch.tensor(v, dtype=INT) if k != "max_seqlen" else v for k, v in change.items()}
    if "query_rows" in change:
        change["query"] = torch.zeros(2, 4, 16)
    return arguments(**change)


@pytest.mark.parametrize("op", OPS)
@WRONG_VALUES
def test_values_out_of_range_are_refused_before_the_op_runs(op, change, message):
    with pytest.raises(InputError, match=message):
        op(**with_values(change))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("op", OPS)
@WRONG_VALUES
def test_values_that_nobody_checked_are_errors_on_the_cpu(op, change, message):
    with pytest.raises(RuntimeError, match=r"packed_attention: .*(cu_seqlens|sequence|query_rows)"):
        op(**with_values(change), validate=False)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (
            [0, 5, 9],
            "row_bounds gives row 0 .* from 0 to 5 and the key 0, but cu_seqlens .* 0 to 4",
        ),
        ([0, 4, 4, 9], None),
        ([0, 4, 8, 9], r"gives row 4 .* 4 to 8 .* 4 to 9 and 4; give row_bounds\(cu_seqlens, 9\)"),
    ],
)
def test_bounds_of_rows_of_other_sequences_are_refused(op, offsets, message):
    bounds = row_bounds(torch.tensor(offsets, dtype=INT), 9)
    given = arguments(row_bounds=bounds)
    if message is None:  # the same rows, and an empty sequence between them
        assert op(**given).shape == (9, 4, 16)
        return
    with pytest.raises(InputError, match=message):
        op(**given)
    assert op(**given, validate=False).shape == (9, 4, 16)


@pytest.mark.parametrize("op", OPS)
def test_bounds_of_other_last_rows_are_refused(op):
    cu_seqlens, cu_seqlens_q, other = (
        torch.tensor(x, dtype=INT) for x in ([0, 4, 9], [0, 2, 5], [0, 1, 5])
    )
    bounds = row_bounds(cu_seqlens, 5, cu_seqlens_q)
    given = arguments(query=torch.zeros(5, 4, 16), cu_seqlens_q=cu_seqlens_q)
    assert op(**{**given, "row_bounds": bounds}).shape == (5, 4, 16)
    message = r"row 0 .* the key 2, but .* and 3; give row_bounds\(cu_seqlens, 5, cu_seqlens_q\)"
    with pytest.raises(InputError, match=message):
        op(**{**given, "row_bounds": bounds, "cu_seqlens_q": other})


@pytest.mark.parametrize(
    "cu_seqlens_q", [torch.tensor([0, 9]), torch.zeros(3, dtype=INT), torch.zeros(1, 2, dtype=INT)]
)
def test_row_bounds_refuses_offsets_of_queries_that_are_not_as_those_of_keys(cu_seqlens_q):
    with pytest.raises(InputError, match=r"cu_seqlens_q is .*expected \[2\] int32, as cu_seqlens"):
        row_bounds(torch.zeros(2, dtype=INT), 9, cu_seqlens_q)


@pytest.mark.parametrize(
    ("cu_seqlens", "tokens", "message"),
    [
        (torch.tensor([0, 9]), 9, r"cu_seqlens is \[2\] int64.*expected \[batch \+ 1\] int32"),
        (torch.tensor([0.0, 9.0]), 9, r"cu_seqlens is \[2\] float32"),
        (torch.zeros(1, 2, dtype=INT), 9, r"cu_seqlens is \[1, 2\]"),
        (torch.zeros(0, dtype=INT), 9, r"cu_seqlens is \[0\]"),
        (torch.zeros(2, dtype=INT), -1, "tokens is -1; expected an int from 0"),
        (torch.zeros(2, dtype=INT, device="meta"), 2**31, "tokens is 2147483648"),
        (torch.zeros(2, dtype=INT), 3.5, "tokens is 3.5"),
        (torch.zeros(2, dtype=INT), True, "tokens is True"),
    ],
)
def test_row_bounds_refuses_what_are_no_offsets_or_no_number(cu_seqlens, tokens, message):
    with pytest.raises(InputError, match=message):
        row_bounds(cu_seqlens, tokens)


def test_values_are_not_read_of_tensors_without_them():
    given = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    assert packed_attention(**given).shape == (9, 4, 16)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(9, 64)}, r"must be \[rows, heads, head_dim\]"),
        ({"query": torch.zeros(9, 4, 16).double()}, "query must be float32, float16 or bfloat16"),
        ({"query": torch.zeros(9, 4, 16).half()}, "must have dtype and device of query"),
        ({"query": torch.zeros(9, 4, 257)}, r"head_dim must be in \[1, 256\], got 257"),
        ({"query": torch.zeros(8, 4, 16)}, "query must have the 9 rows of key, got 8"),
        ({"query": torch.zeros(9, 3, 16)}, "the 3 query heads must be a multiple of the 2"),
        ({"key": torch.zeros(9, 2, 16).bfloat16()}, "must have dtype and device of query"),
        ({"value": torch.zeros(9, 1, 16)}, r"must be \[tokens, kv_heads, 16\]"),
        ({"cu_seqlens": torch.zeros(3)}, "cu_seqlens must be one-dimensional int32"),
        ({"cu_seqlens": torch.zeros(0, dtype=INT)}, r"cu_seqlens must be \[batch \+ 1\]"),
        ({"max_seqlen": 2**31}, r"max_seqlen must be in \[0, 2\^31\)"),
        ({"window": 0}, "window must be -1 for none or at least 1, got 0"),
        ({"query_rows": torch.zeros(9, dtype=INT)}, "got 9 for a batch of 2 and 9 rows"),
        ({"query_rows": torch.zeros(9)}, "query_rows must be one-dimensional int32"),
        ({"cu_seqlens_q": torch.zeros(3)}, "cu_seqlens_q must be one-dimensional int32"),
        ({"cu_seqlens_q": torch.zeros(2, dtype=INT)}, r"cu_seqlens_q must be \[3\], .* got \[2\]"),
        (
            {"cu_seqlens_q": torch.zeros(3, dtype=INT), "query_rows": torch.zeros(9, dtype=INT)},
            "query_rows and cu_seqlens_q must not both be given",
        ),
    ],
)
def test_the_compiled_op_itself_refuses_wrong_arguments(change, message):
    given = arguments(**{"window": -1, **change})
    names = ["query", "key", "value", "cu_seqlens", "max_seqlen", "causal", "window", "scale"]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2v.packed_attention(
            *(given[name] for name in names), given["query_rows"], None, given["cu_seqlens_q"]
        )


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("variant", "message"), [(-1, "at least 0"), (4, "no variant 4"), (3, "variant 3")]
)
def test_a_variant_that_can_not_serve_is_refused(variant, message):
    given = arguments(window=-1)
    names = ["query", "key", "value", "cu_seqlens", "max_seqlen", "causal", "window", "scale"]
    args = [given[name] for name in names]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2v._packed_attention_variant(*args, None, variant)
