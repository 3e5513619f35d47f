"""The defaults of a call that depend on the machine and the model."""

import pytest
import torch

from c2v_engine.runtime.options import resolve_batch_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bytes_per_token", "tokens"),
    [(12 * 1024, 2048), (1024, 8192), (10**6, 1024)],
    ids=["base", "tiny", "7B"],
)
def test_a_cpu_batch_keeps_its_widest_activation_small(bytes_per_token, tokens):
    assert resolve_batch_tokens(None, CPU, bytes_per_token) == tokens


def test_a_gpu_batch_is_long():
    assert resolve_batch_tokens(None, torch.device("cuda"), 10**6) == 32768


def test_what_is_asked_for_is_taken():
    assert resolve_batch_tokens(7, CPU, 1024) == 7
