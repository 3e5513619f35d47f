"""Results on their way to their rows: every dtype, repeated texts, and no thread but the one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from c2v_engine.runtime.batches import Window

ROOT = Path(__file__).resolve().parents[2]
# torch shares a copy of over 32,768 elements out among threads, which it makes when it first does.
SCRIPT = """
import os
import numpy as np
import torch
from c2v_engine.runtime.batches import Window
from c2v_engine.runtime.cuda_execution import _Layout

torch.set_num_threads(4)
def threads():
    return len(os.listdir("/proc/self/task"))
flat = torch.from_numpy(np.zeros(8 * (4096 * 4 + 4), dtype=np.uint8))
before = threads()
embedded = _Layout(8, 4096, torch.float32).split(flat)
Window(0, 8, [[i] for i in range(8)]).put(list(range(8)), embedded.embeddings)
between = threads()
flat.clone()
print(between - before, threads() - between)
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_every_text_gets_its_vector_wherever_it_stands(dtype):
    window = Window(0, 7, [[0, 3], [1], [6, 2], [4], [5]])
    vectors = torch.arange(5 * 3).reshape(5, 3).to(dtype)
    assert window.put([2, 0], vectors[[2, 0]]) == 4
    assert window.missing == 3
    assert window.put([1, 3, 4], vectors[[1, 3, 4]]) == 3
    assert window.missing == 0
    assert window.block is not None
    assert torch.equal(window.block, vectors[[0, 1, 2, 0, 3, 4, 2]])


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_copying_results_wakes_no_threads_of_torch():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    ours, of_torch = map(int, found.stdout.split())
    assert ours == 0
    if not of_torch:
        pytest.skip("this torch makes no threads for a copy either")
