"""Run by ``test_loading``: the peak of this process's memory over loading a decoder's weights.

    python measure_loading.py FOLDER sent|kept

``sent`` reads every weight through a buffer and keeps none, as for a GPU; ``kept`` loads for a CPU.
Prints bytes: of the peak over the process's memory before, and of the weights that were kept.
"""

import resource
import sys
from pathlib import Path

import torch

from c2v_engine.model.arithmetic import make_arithmetic
from c2v_engine.model.checkpoint import load_transformers_config
from c2v_engine.model.decoder_loading import load_decoder
from c2v_engine.model.linear import make_linear
from c2v_engine.model.loading import Placement, WeightLoader
from c2v_engine.model.weights import WeightFolder

BUFFER = torch.zeros(4 * 2**20, dtype=torch.uint8)


def through_a_buffer(loader: WeightLoader, weight: torch.Tensor, target: torch.Tensor) -> None:
    """What the host does with a weight that goes to a GPU: it fills a buffer, again and again."""
    source = weight.reshape(-1)
    staged = BUFFER.view(source.dtype)
    for begin in range(0, len(source), len(staged)):
        piece = source[begin : begin + len(staged)]
        staged[: len(piece)].copy_(piece)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def main() -> None:
    folder = Path(sys.argv[1])
    sent = sys.argv[2] == "sent"
    if sent:
        WeightLoader._copy = through_a_buffer  # type: ignore[method-assign]
    placement = Placement(torch.device("meta" if sent else "cpu"), torch.bfloat16)
    arithmetic = make_arithmetic(placement)
    config = load_transformers_config(folder)
    # oneDNN's and the allocator's own memory is not the weights'.
    torch.nn.functional.linear(*(torch.ones(256, 256, dtype=torch.bfloat16) for _ in range(2)))
    make_linear(torch.ones(256, 256, dtype=torch.bfloat16), None)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident()
    decoder = load_decoder(WeightFolder(folder), config, 64, placement, arithmetic, str(folder))
    parameters = decoder.num_parameters() + decoder.embed_tokens.numel()
    print(peak() - before, 0 if sent else 2 * parameters)


if __name__ == "__main__":
    main()
