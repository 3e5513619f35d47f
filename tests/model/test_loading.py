"""Loading: memory while weights go from the disk to their places, and what gives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("measure_loading.py")
SHARD = 48 * 2**20
# Of the largest shard: mapped whole while it is read, and beside it the layer that is being joined.
MOST = 1.3


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A decoder of 170 MB in shards of 48 MB, float32 on the disk."""
    from transformers import LlamaConfig, LlamaModel

    folder = tmp_path_factory.mktemp("sharded")
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    LlamaModel(config).save_pretrained(folder, max_shard_size=SHARD)
    assert len(list(folder.glob("model-*.safetensors"))) >= 3
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_host_holds_no_more_than_a_shard_beside_the_model(sharded, device):
    command = [sys.executable, str(SCRIPT), str(sharded), device]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    peak, loaded = map(int, result.stdout.split())
    held = peak - (loaded if device == "cpu" else 0)
    largest = max(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert held <= MOST * largest, (held / 2**20, largest / 2**20)


def test_a_model_does_not_read_its_files_after_it_was_loaded(engine, checkpoint, tmp_path):
    """Whoever writes the files anew, in place, must not change or end what runs."""
    from checkpoints import Recipe
    from damage import copy, open_engine

    path = copy(checkpoint(Recipe(storage="float32")), tmp_path)
    model = open_engine(path)
    expected = model.encode("a text")
    for file in path.rglob("*.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as handle:  # the same file, as a careless writer has it
            handle.truncate(0)
            handle.write(b"\xff" * size)
    assert (model.encode("a text") == expected).all()
    assert torch.isfinite(torch.from_numpy(expected)).all()
