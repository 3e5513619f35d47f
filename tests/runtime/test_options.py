"""What a call's options come to."""

import pytest

from c2v_engine.errors import InputError
from c2v_engine.runtime.options import (
    cpu_batch_tokens,
    cuda_batch_tokens,
    resolve_batch_tokens,
)

GIB = 2**30


@pytest.mark.parametrize(
    ("bytes_per_token", "tokens"),
    [(12 * 1024, 2048), (1024, 8192), (10**6, 1024)],
    ids=["base", "tiny", "7B"],
)
def test_a_cpu_batch_keeps_its_widest_activation_small(bytes_per_token, tokens):
    assert cpu_batch_tokens(bytes_per_token) == tokens


@pytest.mark.parametrize(
    ("free", "bytes_per_token", "tokens"),
    [(60 * GIB, 120_000, 32768), (2 * GIB, 120_000, 9728), (GIB // 2, 120_000, 1024)],
    ids=["ample", "scarce", "hardly any"],
)
def test_a_gpu_batch_is_long_as_far_as_free_memory_allows(free, bytes_per_token, tokens):
    assert cuda_batch_tokens(free, bytes_per_token) == tokens


def test_what_is_asked_for_is_taken():
    assert resolve_batch_tokens(7) == 7


@pytest.mark.parametrize("asked", [None, "auto"])
def test_the_engine_chooses_where_nothing_is_asked_for(asked):
    assert resolve_batch_tokens(asked) is None


@pytest.mark.parametrize("asked", [0, -1, 1.5, True, "many"])
def test_no_other_budget_is_taken(asked):
    with pytest.raises(InputError, match="batch_tokens is"):
        resolve_batch_tokens(asked)
