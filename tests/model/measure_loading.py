"""Run by ``test_loading``: the peak of this process's memory over loading a decoder's weights.

    python measure_loading.py FOLDER meta|cpu

``meta`` throws away what is copied, as the host does with what it sends to a GPU. Prints bytes: of
the peak over the process's memory before, and of the loaded weights.
"""

import resource
import sys
from pathlib import Path

import torch

from c2v_engine.model.arithmetic import make_arithmetic
from c2v_engine.model.checkpoint import load_transformers_config
from c2v_engine.model.decoder_loading import load_decoder
from c2v_engine.model.loading import Placement
from c2v_engine.model.weights import WeightFolder


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def main() -> None:
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    placement = Placement(device, torch.bfloat16)
    config = load_transformers_config(folder)
    # oneDNN's and the allocator's own memory is not the weights'.
    torch.nn.functional.linear(*(torch.ones(256, 256, dtype=torch.bfloat16) for _ in range(2)))
    arithmetic = make_arithmetic(placement)
    arithmetic.linear(torch.ones(256, 256, dtype=torch.bfloat16), None, None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident()
    decoder = load_decoder(WeightFolder(folder), config, 64, placement, arithmetic, str(folder))
    loaded = 2 * (decoder.num_parameters() + decoder.embed_tokens.numel())
    print(peak() - before, loaded)


if __name__ == "__main__":
    main()
