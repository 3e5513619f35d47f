"""vLLM's own decoder on the CPU: its layers, loader and pooler; only attention is torch's.

vLLM's attention reads a paged cache by compiled kernels, which a CPU has not.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file


class PackedAttention(torch.nn.Module):
    """Causal attention in each of the sequences that stand end to end."""

    lengths: list[int] = []  # noqa: RUF012  (of the forward that comes, shared by all layers)

    def __init__(self, num_heads, head_size, scale, cache_config=None, **kwargs):
        super().__init__()
        self.head_size, self.scale = head_size, scale
        self.window = kwargs.get("per_layer_sliding_window") or cache_config.sliding_window

    def forward(self, query, key, value):
        outputs = []
        split = [states.split(self.lengths) for states in (query, key, value)]
        for parts in zip(*split, strict=True):
            q, k, v = (part.unflatten(1, (-1, self.head_size)).transpose(0, 1) for part in parts)
            mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
            if self.window is not None:
                mask = mask.triu(1 - self.window)
            attended = F.scaled_dot_product_attention(
                q[None], k[None], v[None], mask, scale=self.scale, enable_gqa=True
            )
            outputs.append(attended[0].transpose(0, 1).flatten(1))
        return torch.cat(outputs)


@contextmanager
def loaded_model(options, monkeypatch):
    """The model that vLLM makes of options, with its weights, and its ``ModelConfig``."""
    from vllm.config import (
        CacheConfig,
        CompilationConfig,
        DeviceConfig,
        VllmConfig,
        set_current_vllm_config,
    )
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.model_executor.models import llama, qwen2, qwen3

    for module in (llama, qwen2, qwen3):
        monkeypatch.setattr(module, "Attention", PackedAttention)
    model_config = EngineArgs(**options, dtype="float32").create_model_config()
    config = VllmConfig(
        model_config=model_config,
        cache_config=CacheConfig(sliding_window=model_config.get_sliding_window()),
        device_config=DeviceConfig("cpu"),
        compilation_config=CompilationConfig(mode=0, custom_ops=["none"]),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{port}", 0, "gloo")
        initialize_model_parallel(1, 1)
        try:
            model = initialize_model(vllm_config=config)
            weights = load_file(f"{options['model']}/model.safetensors")
            loaded = model.load_weights(iter(weights.items()))
            assert set(dict(model.named_parameters())) == set(loaded)
            yield model, model_config
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()


def hidden_states(model, prompts):
    """What the model gives for the rows of all prompts, ``[tokens, d]``, and their lengths."""
    lengths = [len(one["prompt_embeds"]) for one in prompts]
    PackedAttention.lengths = lengths
    positions = torch.cat([torch.arange(length) for length in lengths])
    rows = torch.cat([one["prompt_embeds"] for one in prompts])
    with torch.inference_mode():
        return model(None, positions, inputs_embeds=rows), np.array(lengths)


def pooling_batch(parameters, lengths, scheduled):
    """What a pooler is told of prompts, of which so many rows are there."""
    from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

    batch = PoolingMetadata(
        prompt_lens=torch.from_numpy(lengths),
        prompt_token_ids=None,
        prompt_token_ids_cpu=None,
        pooling_params=parameters,
        pooling_states=[PoolingStates() for _ in parameters],
    )
    starts = torch.from_numpy(np.concatenate(([0], np.cumsum(scheduled))))
    rows = torch.from_numpy(scheduled)
    batch.build_pooling_cursor(scheduled, rows, torch.device("cpu"), starts)
    return batch
