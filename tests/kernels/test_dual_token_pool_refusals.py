"""What the pooling op does with arguments and indices that are wrong."""

import pytest
import torch
from pooling_cases import make_case

from c2v_engine.errors import InputError
from c2v_engine.kernels.dual_token_pool import (
    dual_token_pool,
    dual_token_pool_reference,
    extension_status,
)

INT = torch.int32


# What the engine leaves out, the op itself says on the CPU.
@pytest.fixture(params=[(True, InputError), (False, RuntimeError)], ids=["checked", "unchecked"])
def checked(request):
    return request.param


@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_states": torch.zeros(9)}, r"hidden_states is \[9\] float32"),
        ({"hidden_states": torch.zeros(9, 123, dtype=torch.float64)}, "hidden_states is .*float64"),
        ({"norm_weight": torch.ones(122)}, r"norm_weight is \[122\].*expected \[123\]"),
        ({"rows": torch.zeros(6, dtype=torch.int64)}, "rows is .*int64.*expected .*int32"),
        ({"rows": torch.zeros(6, 1, dtype=INT)}, r"rows is \[6, 1\]"),
        ({"offsets": torch.zeros(6, dtype=INT)}, r"offsets is \[6\].*batch \* 2 \+ 1"),
        ({"offsets": torch.zeros(0, dtype=INT)}, r"offsets is \[0\]"),
        ({"offsets": torch.zeros(7)}, "offsets is .*float32"),
        ({"segments": 0}, "segments is 0"),
        ({"keep": 0}, "keep is 0; choose from 1 to the hidden size, 123"),
        ({"keep": 124}, "keep is 124"),
        ({"ranges": None}, r"int8 needs ranges, \[2, 10\]"),
        ({"ranges": torch.zeros(2, 9)}, r"ranges is \[2, 9\].*expected \[2, 10\]"),
        ({"ranges": torch.zeros(2, 10).double()}, "ranges is .*float64"),
        ({"norm_weight": torch.ones(123, device="meta")}, "norm_weight is .*on meta"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(op, change, message):
    with pytest.raises(InputError, match=message):
        make_case()._replace(**change).run(op, precision="int8")


@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
def test_an_unknown_precision_is_refused_with_the_known_ones(op):
    with pytest.raises(InputError, match="precision is 'int4'; choose one of float32, float16"):
        make_case().run(op, precision="int4")


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
@pytest.mark.parametrize("row", [-1, 10_000])
def test_a_row_out_of_range_is_an_error(op, row, checked):
    validate, error = checked
    case = make_case()
    case.rows[1] = row
    with pytest.raises(error, match=r"rows?.*hidden_states has"):
        case.run(op, validate=validate)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_offsets_that_do_not_rise_to_the_number_of_rows_are_an_error(op, position, checked):
    validate, error = checked
    case = make_case()
    case.offsets[position] = -5
    with pytest.raises(error, match="offsets"):
        case.run(op, validate=validate)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(9), "hidden_states must be"),
        (1, torch.zeros(6), "rows must be one-dimensional int32"),
        (2, torch.zeros(6, dtype=INT), r"offsets must be \[batch \* 2 \+ 1\], got \[6\]"),
        (3, torch.ones(122), r"norm_weight must be \[123\]"),
        (3, torch.ones(123).double(), "norm_weight must be float32, float16 or bfloat16"),
        (5, 0, "segments must be at least 1"),
        (6, 124, r"keep must be in \[1, 123\], got 124"),
        (8, 7, r"precision must be a code in \[0, 6\], got 7"),
        (9, None, "need ranges"),
        (9, torch.zeros(3, 10), r"ranges must be float32 \[2, 10\]"),
    ],
)
def test_the_compiled_op_itself_refuses_wrong_arguments(position, value, message):
    case = make_case()
    args = [*case[:5], case.segments, case.keep, True, 3, case.ranges]
    args[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.c2v.dual_token_pool(*args)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("op", [dual_token_pool, dual_token_pool_reference])
def test_an_empty_segment_is_an_error(op, checked):
    validate, error = checked
    case = make_case()
    case.offsets[3] = case.offsets[2]
    with pytest.raises(error, match=r"empty"):
        case.run(op, validate=validate)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_values_are_checked_on_cuda_as_well():
    case = make_case(3, device="cuda")
    case.offsets[3] = case.offsets[2]
    with pytest.raises(InputError, match="offsets name an empty segment"):
        case.run()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_the_cuda_kernel_gives_an_empty_segment_a_norm_of_nan():
    if not extension_status().cuda:
        pytest.skip("the extension was built without CUDA")
    case = make_case(3, device="cuda")
    case.offsets[3] = case.offsets[2]
    _, norms = case.run(validate=False)
    assert norms.isfinite().tolist() == [True, False, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_the_cuda_kernel_gives_a_row_out_of_range_a_norm_of_nan():
    if not extension_status().cuda:
        pytest.skip("the extension was built without CUDA")
    case = make_case(device="cuda")
    case.rows[0] = 1 << 30
    _, norms = case.run(validate=False)
    assert norms.isfinite().tolist() == [False, True, True]
