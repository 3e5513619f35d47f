"""Attention over packed sequences against the plain formula, one sequence at a time, in float64.

Tolerance: float32 sums of at most some hundred products of normal numbers err by under 1e-6 of
values near 1; 1e-5 lets that pass and no mistake, which would show in the first digits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from damage import assert_refused
from interpreter import triton_form

from c2v_engine.errors import BackendError
from c2v_engine.kernels import _triton
from c2v_engine.model.attention import base
from c2v_engine.model.attention.base import AttentionMask, RowQueries
from c2v_engine.model.attention.packed_triton import PackedTritonAttention
from c2v_engine.model.attention.sdpa import SdpaAttention
from c2v_engine.model.attention.select import BACKENDS, select_attention
from c2v_engine.model.attention.varlen import VarlenBackend
from c2v_engine.model.packed_batch import KeySequences, PackedSequences

CPU = torch.device("cpu")
TOLERANCE = 1e-5
LENGTHS = {
    "one": [1],
    "alone": [37],
    "equal": [9, 9, 9, 9],
    "like": [20, 19, 18, 20, 17],
    "mixed": [1, 64, 3, 3, 65, 2, 17, 64, 1, 30],
    "rising": [1, 2, 3, 5, 8, 13, 21, 34],
}
HEADS = {"plain": (4, 4, 16), "grouped": (6, 2, 20), "one key head": (5, 1, 8)}
MASKS = {
    "causal": AttentionMask(True),
    "bidirectional": AttentionMask(False),
    "causal window": AttentionMask(True, 7),
    "window of one": AttentionMask(True, 1),
    "bidirectional window": AttentionMask(False, 5),
    "window never reached": AttentionMask(True, 500),
}
ON_THIS_CPU = [
    backend for backend in BACKENDS.values() if backend.why_not(CPU, torch.bfloat16, 16) is None
]
each_backend = pytest.mark.parametrize(
    "backend", [backend() for backend in ON_THIS_CPU], ids=lambda backend: backend.name
)
each_batch = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
each_shape = pytest.mark.parametrize(("heads", "kv_heads", "size"), HEADS.values(), ids=HEADS)


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first_middle_last(lengths):
    """Packed rows of every sequence, as those of contextual token, text and EOS are pooled."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    rows = np.stack([starts, (starts + ends - 1) // 2, ends - 1], axis=1).reshape(-1)
    return torch.from_numpy(rows).int()


def packed(lengths, device="cpu"):
    lengths = np.array(lengths, dtype=np.int64)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(n, dtype=torch.int32, device=device) for n in lengths])
    return PackedSequences(torch.zeros_like(positions), positions, cu_seqlens, lengths)


def projections(lengths, heads, kv_heads, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, size), (kv_heads, size), (kv_heads, size))
    return [torch.randn((sum(lengths), *shape), generator=generator) for shape in shapes]


def sees(mask, i, j):
    return not (mask.causal and j > i) and (mask.window is None or abs(i - j) < mask.window)


def plain(query, key, value, lengths, mask, scale):
    """softmax(Q K^T * scale + mask) V, as it is written, float64 ``[tokens, heads, D]``."""
    groups = query.shape[1] // key.shape[1]
    outputs, begin = [], 0
    for length in lengths:
        rows = slice(begin, begin + length)
        q = query[rows].double()
        k, v = (x[rows].double().repeat_interleave(groups, dim=1) for x in (key, value))
        logits = torch.einsum("qhd,khd->hqk", q, k) * scale
        seen = torch.tensor([[sees(mask, i, j) for j in range(length)] for i in range(length)])
        logits = logits.masked_fill(~seen, -torch.inf)
        outputs.append(torch.einsum("hqk,khd->qhd", torch.softmax(logits, dim=-1), v))
        begin += length
    return torch.cat(outputs)


@each_backend
@each_batch
@each_mask
@each_shape
def test_all_rows_attend_as_the_formula_says(backend, lengths, mask, heads, kv_heads, size):
    qkv = projections(lengths, heads, kv_heads, size)
    plan = backend.plan(packed(lengths), mask)
    actual = backend.attend(*qkv, plan, 0.3)
    expected = plain(*qkv, lengths, mask, 0.3)
    np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=TOLERANCE)


@each_backend
@each_batch
@each_mask
@each_shape
def test_chosen_rows_see_what_all_rows_see(backend, lengths, mask, heads, kv_heads, size):
    query, key, value = projections(lengths, heads, kv_heads, size, seed=1)
    rows = first_middle_last(lengths)
    plan = backend.plan_rows(packed(lengths), rows, mask)
    actual = backend.attend_rows(query[rows.long()], key, value, plan, 0.3)
    expected = plain(query, key, value, lengths, mask, 0.3)[rows.long()]
    np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("max_keys", [1, 70, 100])
def test_keys_gathered_in_several_chunks_give_the_same(max_keys):
    lengths, mask = LENGTHS["mixed"], AttentionMask(True)
    query, key, value = projections(lengths, 4, 2, 16)
    rows = first_middle_last(lengths)
    actual, expected = (
        RowQueries(packed(lengths), rows, mask, limit).attend(query[rows.long()], key, value, 0.3)
        for limit in (max_keys, 100_000)
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@each_backend
def test_rows_may_stand_in_any_order_within_their_sequence(backend):
    lengths, mask = [5, 3], AttentionMask(True)
    query, key, value = projections(lengths, 2, 2, 8)
    rows = torch.tensor([4, 0, 6, 7], dtype=torch.int32)
    plan = backend.plan_rows(packed(lengths), rows, mask)
    actual = backend.attend_rows(query[rows.long()], key, value, plan, 0.3)
    expected = plain(query, key, value, lengths, mask, 0.3)[rows.long()]
    np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=TOLERANCE)


@each_backend
@each_mask
def test_a_sequence_is_not_touched_by_what_stands_beside_it(backend, mask):
    lengths = [6, 7, 6, 20]
    qkv = projections(lengths, 4, 2, 8)
    sequences = packed(lengths)
    spoilt = [x.clone() for x in qkv]
    for x in spoilt:
        x[6:13] = torch.nan
    plan = backend.plan(sequences, mask)
    clean, actual = (backend.attend(*x, plan, 0.3) for x in (qkv, spoilt))
    others = [*range(6), *range(13, 39)]
    assert torch.equal(actual[others], clean[others])
    assert actual[6:13].isnan().all()
    rows = torch.tensor([5, 12, 18, 38], dtype=torch.int32)
    plan = backend.plan_rows(sequences, rows, mask)
    actual = backend.attend_rows(spoilt[0][rows.long()], spoilt[1], spoilt[2], plan, 0.3)
    assert actual[[0, 2, 3]].isfinite().all()
    assert actual[1].isnan().all()


# --- our Triton kernels, on a GPU or interpreted --------------------------------------------------

needs_triton = pytest.mark.skipif(_triton.triton is None, reason="Triton is not installed")


def on_triton(method, *arguments):
    """Calls a backend's method where the Triton kernels run."""
    form = triton_form(method)
    return form(*(x.to(form.device) if torch.is_tensor(x) else x for x in arguments)).cpu()


@needs_triton
@each_mask
@pytest.mark.parametrize("shape", ["grouped", "one key head"])
def test_the_triton_backend_attends_as_the_formula_says(mask, shape):
    lengths = LENGTHS["mixed"]
    qkv = projections(lengths, *HEADS[shape])
    rows = first_middle_last(lengths)
    backend = PackedTritonAttention()
    device = triton_form(None).device
    sequences = packed(lengths, device)
    expected = plain(*qkv, lengths, mask, 0.3)
    plan = backend.plan(sequences, mask)
    actual = on_triton(backend.attend, *qkv, plan, 0.3)
    np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=TOLERANCE)
    plan = backend.plan_rows(sequences, rows.to(device), mask)
    chosen = on_triton(backend.attend_rows, qkv[0][rows.long()], *qkv[1:], plan, 0.3)
    np.testing.assert_allclose(chosen.double(), expected[rows.long()], rtol=0, atol=TOLERANCE)


@needs_triton
@each_mask
def test_chosen_rows_of_any_backend_go_to_the_triton_kernel_where_it_serves(monkeypatch, mask):
    def fail(*arguments):
        raise AssertionError("gathered keys although the kernel serves")

    monkeypatch.setattr(base, "triton_serves", lambda device: True)
    monkeypatch.setattr(base, "RowQueries", fail)
    lengths = LENGTHS["mixed"]
    query, key, value = projections(lengths, 6, 2, 20)
    rows = first_middle_last(lengths)
    expected = plain(query, key, value, lengths, mask, 0.3)[rows.long()]
    device = triton_form(None).device
    for backend in (SdpaAttention(), BACKENDS["torch_varlen"]()):
        plan = backend.plan_rows(packed(lengths, device), rows.to(device), mask)
        actual = on_triton(backend.attend_rows, query[rows.long()], key, value, plan, 0.3)
        np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=TOLERANCE)


def test_chosen_rows_of_heads_too_large_for_the_kernel_are_gathered(monkeypatch):
    monkeypatch.setattr(base, "triton_serves", lambda device: True)
    lengths, mask = [5, 3], AttentionMask(True)
    query, key, value = projections(lengths, 1, 1, 260)
    rows = first_middle_last(lengths)
    plan = SdpaAttention().plan_rows(packed(lengths), rows, mask)
    actual = SdpaAttention().attend_rows(query[rows.long()], key, value, plan, 0.05)
    expected = plain(query, key, value, lengths, mask, 0.05)[rows.long()]
    np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=TOLERANCE)


# --- groups of sdpa -------------------------------------------------------------------------------


def test_padding_stays_within_its_bound():
    """Long and short sequences must not be padded to one length."""
    lengths = [500, 10, 9, 490, 10, 480]
    plan = SdpaAttention().plan(packed(lengths), AttentionMask(True))
    padded = plan.groups[-1].queries.stop
    assert sum(lengths) <= padded <= sum(lengths) / 0.85
    assert sum(group.count for group in plan.groups) == len(lengths)


def test_sequences_of_one_length_are_not_moved():
    plan = SdpaAttention().plan(packed([8, 8, 8]), AttentionMask(True))
    for padding in (plan.queries, plan.keys):
        assert padding.gather is None
        assert padding.scatter is None
    [group] = plan.groups
    assert (group.count, group.queries, group.keys) == (3, slice(0, 24), slice(0, 24))


# --- behind a shared prompt -----------------------------------------------------------------------


def behind_prompt(lengths, prompt_rows):
    """Packed sequences whose keys have some rows of a prompt before their own."""
    own, longer = packed(lengths), packed([n + prompt_rows for n in lengths])
    keys = KeySequences(longer.token_ids, longer.cu_seqlens, longer.lengths, prompt_rows)
    return replace(own, keys=keys)


@each_backend
@each_batch
@each_mask
@pytest.mark.parametrize("prompt_rows", [1, 9, 40])
def test_queries_behind_a_prompt_are_the_last_of_longer_sequences(
    backend, lengths, mask, prompt_rows
):
    whole = [n + prompt_rows for n in lengths]
    query, key, value = projections(whole, 6, 2, 20)
    expected = plain(query, key, value, whole, mask, 0.3)
    ends = np.cumsum(whole)
    last = np.concatenate([np.arange(e - n, e) for e, n in zip(ends, lengths, strict=True)])
    sequences = behind_prompt(lengths, prompt_rows)
    actual = backend.attend(query[last], key, value, backend.plan(sequences, mask), 0.3)
    np.testing.assert_allclose(actual.double(), expected[last], rtol=0, atol=TOLERANCE)
    rows = first_middle_last(lengths)
    places = sequences.keys.places(rows)
    plan = backend.plan_rows(sequences.keys, places, mask)
    chosen = backend.attend_rows(query[places.long()], key, value, plan, 0.3)
    np.testing.assert_allclose(chosen.double(), expected[places.long()], rtol=0, atol=TOLERANCE)


@each_backend
def test_bfloat16_stays_near(backend):
    lengths, mask = [33, 20, 7], AttentionMask(True)
    query, key, value = projections(lengths, 4, 2, 16)
    expected = plain(query, key, value, lengths, mask, 0.25)
    plan = backend.plan(packed(lengths), mask)
    actual = backend.attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), plan, 0.25)
    assert actual.dtype == torch.bfloat16
    # Inputs rounded to 8 bits, so values near 3 err by up to some hundredths.
    np.testing.assert_allclose(actual.double(), expected, rtol=0, atol=0.05)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "longest", "kept"), [(8, 9, 8), (8, 8, None), (8, 3, None), (None, 9, None)]
)
def test_a_window_that_nothing_reaches_is_dropped(window, longest, kept):
    for causal in (True, False):
        mask = AttentionMask(causal, window).for_length(longest)
        assert mask == AttentionMask(causal, kept)


def test_windows_are_given_to_flash_attention_as_it_counts_them():
    assert AttentionMask(True).window_size == (-1, 0)
    assert AttentionMask(False).window_size == (-1, -1)
    assert AttentionMask(True, 8).window_size == (7, 0)
    assert AttentionMask(False, 8).window_size == (7, 7)


# --- choosing a backend ---------------------------------------------------------------------------


def test_sdpa_serves_on_the_cpu():
    assert SdpaAttention in ON_THIS_CPU
    assert isinstance(select_attention("sdpa", CPU, torch.float32, 24), SdpaAttention)
    chosen = select_attention("auto", CPU, torch.float32, 24)
    assert type(chosen) is next(
        backend for backend in BACKENDS.values() if backend.why_not(CPU, torch.float32, 24) is None
    )


VARLEN = [name for name, backend in BACKENDS.items() if issubclass(backend, VarlenBackend)]


@pytest.mark.parametrize("name", VARLEN)
def test_flash_attention_on_a_cpu_is_refused_with_the_reason(name):
    assert_refused(
        lambda: select_attention(name, CPU, torch.bfloat16, 64),
        repr(name),
        "needs a CUDA GPU",
        error=BackendError,
    )


@pytest.mark.parametrize("name", VARLEN)
@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"),
    [
        (torch.float32, 64, "needs bfloat16 or float16, not float32"),
        (torch.bfloat16, 264, "a head size that 8 divides, up to 256, not 264"),
        (torch.float16, 20, "a head size that 8 divides, up to 256, not 20"),
    ],
)
def test_flash_attention_names_what_it_can_not_do(name, dtype, head_dim, reason):
    assert reason in BACKENDS[name].why_not(torch.device("cuda"), dtype, head_dim)


@pytest.mark.parametrize(
    ("name", "capability", "serves"),
    [
        ("flash_attn_2", (7, 5), False),
        ("flash_attn_2", (8, 0), True),
        ("flash_attn_2", (10, 0), True),
        ("flash_attn_3", (8, 9), False),
        ("flash_attn_3", (9, 0), True),
        ("flash_attn_3", (10, 0), False),
        ("flash_attn_4", (8, 0), False),
        ("flash_attn_4", (9, 0), True),
        ("flash_attn_4", (10, 0), True),
        ("torch_varlen", (7, 0), False),
        ("torch_varlen", (8, 0), True),
    ],
)
def test_each_backend_knows_its_gpus(name, capability, serves):
    reason = BACKENDS[name].why_not_on(capability)
    assert (reason is None) is serves
    if not serves:
        assert str(capability) in reason


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "reason"),
    [
        ("cpu", torch.bfloat16, 64, "needs a CUDA GPU"),
        ("cuda", torch.float64, 64, "needs float32, float16 or bfloat16, not float64"),
        ("cuda", torch.bfloat16, 257, "a head size of at most 256, not 257"),
    ],
)
def test_the_triton_backend_names_what_it_can_not_do(device, dtype, head_dim, reason):
    assert reason in PackedTritonAttention.why_not(torch.device(device), dtype, head_dim)


@needs_triton
@pytest.mark.parametrize(
    ("capability", "serves"), [((7, 5), False), ((8, 0), True), ((12, 0), True)]
)
def test_the_triton_backend_knows_its_gpus(monkeypatch, capability, serves):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    _triton.triton_serves.cache_clear()
    reason = PackedTritonAttention.why_not(torch.device("cuda"), torch.float32, 5)
    _triton.triton_serves.cache_clear()
    assert (reason is None) is serves
    assert serves or "needs compute capability 8.0, not (7, 5)" in reason


def test_the_triton_backend_says_that_triton_is_missing(monkeypatch):
    missing = _triton.TritonStatus(False, "not installed")
    monkeypatch.setattr("c2v_engine.model.attention.packed_triton.triton_status", lambda: missing)
    reason = PackedTritonAttention.why_not(torch.device("cuda"), torch.bfloat16, 64)
    assert reason == "needs Triton: not installed"


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("flash_attn_2", "flash_attn_3", "flash_attn_4"):
        assert "is not installed" in BACKENDS[name].why_not_installed()


def test_an_unknown_backend_is_refused_with_the_known_ones():
    assert_refused(
        lambda: select_attention("flash", CPU, torch.float32, 64),
        "attention is 'flash'",
        "auto",
        *BACKENDS,
        error=BackendError,
    )
