"""BERT's input embeddings against float64, the reference and transformers."""

from importlib.util import find_spec

import pytest
import torch
from far_rows import amid_ones, far_rows
from interpreter import forms, poisoned_memory, triton_form
from row_cases import DTYPES, ROWS, SIXTEEN_BIT, WIDTHS, random, with_row_stride
from transformers.models.bert.modeling_bert import BertConfig, BertEmbeddings

from c2v_engine.errors import InputError
from c2v_engine.kernels._gather import gather_known_rows
from c2v_engine.kernels.embed_layer_norm import embed_layer_norm, embed_layer_norm_reference

EPS = 1e-12  # BERT's
WORDS, POSITIONS = 50, 20
FORMS = forms(embed_layer_norm, embed_layer_norm_reference)
RELATIVE_NORM = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}

pytestmark = [
    pytest.mark.usefixtures("compiled"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning"),
]


def make_case(tokens, width, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(tokens + width)
    case = {
        "token_ids": torch.randint(0, WORDS, (tokens,), generator=generator).int(),
        "position_ids": torch.randint(0, POSITIONS, (tokens,), generator=generator).int(),
        "word_embeddings": random(WORDS, width, dtype=dtype, seed=1),
        "position_embeddings": random(POSITIONS, width, dtype=dtype, seed=2),
        "token_type": random(width, dtype=dtype, seed=3),
        "weight": (random(width, seed=4) * 0.2 + 1).to(dtype),
        "bias": random(width, dtype=dtype, seed=5),
    }
    return {name: tensor.to(device) for name, tensor in case.items()}


def summed(case):
    """The three embeddings, added and rounded in the order of BERT."""
    total = case["word_embeddings"][case["token_ids"].long()] + case["token_type"]
    return total + case["position_embeddings"][case["position_ids"].long()]


def float64_norm(total, case, eps=EPS):
    wide = total.double()
    centred = wide - wide.mean(dim=-1, keepdim=True)
    unit = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return unit * case["weight"].double() + case["bias"].double()


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("tokens", "width"),
    [(tokens, width) for tokens in ROWS for width in WIDTHS]
    + [(1, 768), (4097, 24), (4097, 1), (30_000, 8), (3, 384), (2, 32_768), (2, 40_000)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_agrees_with_float64(dtype, tokens, width, op):
    case = make_case(tokens, width, dtype, op.device)
    # A few values can lie so close together that their rounding is what is normalised.
    eps = 1e-2 if width <= 24 else EPS
    expected = float64_norm(summed(case), case, eps)
    with poisoned_memory():
        normed = op(**case, eps=eps)
    assert (normed.shape, normed.dtype) == ((tokens, width), dtype)
    assert (normed.double() - expected).norm() <= RELATIVE_NORM[dtype] * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_the_embedding_of_transformers(dtype):
    case = make_case(5, 24, dtype)
    config = BertConfig(
        hidden_size=24,
        num_attention_heads=1,
        vocab_size=WORDS,
        max_position_embeddings=POSITIONS,
        layer_norm_eps=EPS,
    )
    stock = BertEmbeddings(config).to(dtype).eval()
    stock.load_state_dict(
        {
            "word_embeddings.weight": case["word_embeddings"],
            "position_embeddings.weight": case["position_embeddings"],
            "token_type_embeddings.weight": torch.stack([case["token_type"]] * 2),
            "LayerNorm.weight": case["weight"],
            "LayerNorm.bias": case["bias"],
        }
    )
    ids, positions = (case[name].long()[None] for name in ("token_ids", "position_ids"))
    expected = stock(ids, position_ids=positions)[0].detach()
    assert torch.equal(embed_layer_norm_reference(**case, eps=EPS), expected)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT)
def test_each_sum_is_rounded_in_the_order_of_bert(dtype, op):
    case = make_case(123, 123, dtype, op.device)
    words = case["word_embeddings"][case["token_ids"].long()]
    positions = case["position_embeddings"][case["position_ids"].long()]
    normed = op(**case, eps=EPS).double()
    apart = [
        (normed - float64_norm(total, case)).norm()
        for total in (
            summed(case),
            words + positions + case["token_type"],
            words.double() + case["token_type"].double() + positions.double(),
        )
    ]
    assert apart[0] < 0.9 * min(apart[1:])


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_may_have_any_strides(dtype, op):
    case = make_case(5, 123, dtype, op.device)
    expected = op(**case, eps=EPS)
    same = {name: tensor.clone() for name, tensor in case.items()}
    for name in ("word_embeddings", "position_embeddings"):
        strided = {**case, name: with_row_stride(case[name], torch.nan)[0]}
        assert torch.equal(op(**strided, eps=EPS), expected)
        scattered = {**case, name: case[name].t().contiguous().t()}
        assert torch.equal(op(**scattered, eps=EPS), expected)
    for name in ("token_ids", "position_ids", "token_type", "weight", "bias"):
        scattered = {**case, name: torch.stack([case[name]] * 2, dim=1)[:, 0]}
        assert torch.equal(op(**scattered, eps=EPS), expected)
    assert all(torch.equal(case[name], same[name]) for name in case)


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("width", [24, 768])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_alone_gives_the_same_bits_as_among_others(dtype, width, op):
    case = make_case(123, width, dtype, op.device)
    alone = {**case, **{name: case[name][77:78] for name in ("token_ids", "position_ids")}}
    assert torch.equal(op(**case, eps=EPS)[77:78], op(**alone, eps=EPS))


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_not_finite_makes_its_own_rows_nan(dtype, value, table, op):
    case = make_case(5, 123, dtype, op.device)
    index = "token_ids" if table == "word_embeddings" else "position_ids"
    case[table][int(case[index][2]), 100] = value
    expected = (case[index] == case[index][2]).tolist()
    normed = op(**case, eps=EPS)
    assert normed.isnan().all(dim=1).tolist() == expected
    assert normed.isnan().any(dim=1).tolist() == expected


OUT_OF_RANGE = [
    ("token_ids", -1),
    ("token_ids", WORDS),
    ("token_ids", 2**31 - 1),
    ("token_ids", -(2**31)),
    ("position_ids", -1),
    ("position_ids", POSITIONS),
]


@pytest.mark.parametrize("op", [form for form in FORMS if form.id in ("cpu", "reference")])
@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_on_the_cpu_an_id_out_of_range_is_an_error(name, value, op):
    case = make_case(5, 24, torch.float32)
    case[name][2] = value
    with pytest.raises(IndexError, match="out of range"):
        op(**case, eps=EPS)


TABLES = ["word_embeddings", "position_embeddings"]


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize("table", TABLES)
def test_of_an_empty_table_no_row_can_be_had(table, op):
    case = make_case(5, 24, torch.float32, op.device)
    case[table] = case[table][:0]
    if op.name in ("cpu", "reference"):
        with pytest.raises(IndexError, match="out of range"):
            op(**case, eps=EPS)
    else:
        assert op(**case, eps=EPS).isnan().all()
    case |= {name: case[name][:0] for name in ("token_ids", "position_ids")}
    assert op(**case, eps=EPS).shape == (0, 24)


def test_what_serves_on_cuda_without_triton_gathers_nan_for_what_is_out_of_range():
    table = random(3, 24)
    ids = torch.tensor([2, -1, 0, 3], dtype=torch.int32)
    rows = gather_known_rows(table, ids)
    assert torch.equal(rows[[0, 2]], table[[2, 0]])
    assert rows[[1, 3]].isnan().all()
    assert gather_known_rows(table[:0], ids).isnan().all()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_makes_a_row_of_nan_of_an_id_out_of_range(dtype, name, value):
    op = triton_form(embed_layer_norm)
    case = make_case(5, 123, dtype, op.device)
    expected = op(**case, eps=EPS)
    case |= {table: amid_ones(case[table]) for table in ("word_embeddings", "position_embeddings")}
    case[name][2] = value
    expected[2] = torch.nan
    normed = op(**case, eps=EPS)
    torch.testing.assert_close(normed, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("table", ["word_embeddings", "position_embeddings"])
def test_offsets_beyond_two_to_the_31_are_right(table):
    op = triton_form(embed_layer_norm)
    case = make_case(3, 24, torch.bfloat16, op.device)
    case |= {name: torch.arange(3).int().to(op.device) for name in ("token_ids", "position_ids")}
    case[table] = case[table][:3]
    expected = op(**case, eps=EPS)
    case[table] = far_rows(case[table])
    assert torch.equal(op(**case, eps=EPS), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_passes(dtype):
    args = (*make_case(5, 24, dtype).values(), EPS)
    results = torch.library.opcheck(torch.ops.c2v.embed_layer_norm.default, args)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.zeros(5).long()}, r"token_ids is .*int64.*\[tokens\] int32 on cpu"),
        ({"token_ids": torch.zeros(5, 1).int()}, r"token_ids is \[5, 1\]"),
        ({"token_ids": torch.zeros(5, device="meta").int()}, "token_ids is .*on meta"),
        ({"position_ids": torch.zeros(4).int()}, r"position_ids is \[4\].*\[5\] int32"),
        ({"position_ids": torch.zeros(5)}, "position_ids is .*float32"),
        ({"word_embeddings": torch.zeros(24)}, r"word_embeddings is \[24\]"),
        ({"word_embeddings": torch.zeros(9, 24).double()}, "word_embeddings is .*float64"),
        ({"position_embeddings": torch.zeros(24)}, r"position_embeddings is \[24\]"),
        (
            {"position_embeddings": torch.zeros(9, 23)},
            r"position_embeddings is \[9, 23\].*\[9, 24\]",
        ),
        ({"position_embeddings": torch.zeros(9, 24).half()}, "position_embeddings is .*float16"),
        ({"token_type": torch.zeros(1, 24)}, r"token_type is \[1, 24\].*expected \[24\]"),
        ({"weight": torch.ones(23)}, r"weight is \[23\].*expected \[24\]"),
        ({"bias": torch.ones(24, device="meta")}, "bias is .*on meta; expected .*on cpu"),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_expected(change, message, op):
    with pytest.raises(InputError, match=message):
        op(**{**make_case(5, 24, torch.float32), **change}, eps=EPS)
