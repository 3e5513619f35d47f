"""What packed attention does with arguments and indices that are wrong."""

import pytest
import torch

from c2v_engine.errors import InputError
from c2v_engine.kernels.packed_attention import packed_attention, packed_attention_reference

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
        ({"window": 0}, "window is 0; give 1 or more tokens, or None"),
        ({"window": -1}, "window is -1"),
        ({"query_rows": torch.zeros(8, dtype=INT)}, r"query_rows is \[8\].*expected \[9\]"),
        ({"query_rows": torch.zeros(9, dtype=INT)}, "as many of each of 2 sequences"),
        ({"query_rows": torch.zeros(9)}, "query_rows is .*float32"),
        ({"key": torch.zeros(9, 2, 16, device="meta")}, "on meta; expected"),
        (
            {"row_bounds": torch.zeros(9, 2, dtype=INT)},
            r"row_bounds is \[9, 2\].*expected \[2, 9\]",
        ),
        ({"row_bounds": torch.zeros(2, 9)}, "row_bounds is .*float32"),
        ({"row_bounds": torch.zeros(2, 9, dtype=INT, device="meta")}, "row_bounds is .*on meta"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(op, change, message):
    with pytest.raises(InputError, match=message):
        op(**arguments(**change))


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
    ],
)
def test_the_compiled_op_itself_refuses_wrong_arguments(change, message):
    given = arguments(**{"window": -1, **change})
    names = ["query", "key", "value", "cu_seqlens", "max_seqlen", "causal", "window", "scale"]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2v.packed_attention(*(given[name] for name in names), given["query_rows"])


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
