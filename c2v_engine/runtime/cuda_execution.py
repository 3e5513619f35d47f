"""Batches on a GPU: two under way, each with one copy there and one back, on streams of their own.

While a batch is computed the next is packed and copied to the device, and the one before is copied
back. Nothing between launch and result asks the device for a value. Activations come from a
workspace, a memory pool that holds one block for the largest batch from the first on: later batches
take parts of it, so that lengths which change from batch to batch do not tear the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from c2v_engine.kernels._triton import triton_serves
from c2v_engine.model.causal2vec import PackedCausal2Vec
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.model.stages import stage
from c2v_engine.runtime.execution import Embedded, Execution, UnderWay
from c2v_engine.runtime.graphs import GraphCache, Replay, ShapeChooser
from c2v_engine.runtime.packing import HostBatch, PackingRules, lay_out
from c2v_engine.runtime.tokenization import TokenizedText

_SLOTS = 3
_GRAPH_WARM_UPS = 2
_LEAST_WORKSPACE = 2**20


@dataclass(frozen=True)
class _Layout:
    """How embeddings and norms stand in one run of bytes."""

    texts: int
    columns: int
    dtype: torch.dtype

    def split(self, flat: torch.Tensor) -> Embedded:
        size = self.texts * self.columns * self.dtype.itemsize
        embeddings = flat[:size].clone().view(self.dtype).view(self.texts, self.columns)
        norms = flat[size : size + 4 * self.texts].clone().view(torch.float32)
        return Embedded(embeddings, norms)


def _page_locked(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Host memory that the device copies from and to by itself."""
    return torch.empty(elements, dtype=dtype, pin_memory=True)


class _Slot:
    """Buffers of one batch under way, and the events that say when each is free."""

    def __init__(self) -> None:
        self.host_input = torch.empty(0, dtype=torch.int32)
        self.input = torch.empty(0, dtype=torch.int32)
        self.host_output = torch.empty(0, dtype=torch.uint8)
        self.output: torch.Tensor | None = None
        self.uploaded, self.computed, self.returned = (torch.cuda.Event() for _ in range(3))
        self.owner: _OnDevice | None = None
        self.lock = Lock()

    def reserve(self, elements: int, device: torch.device) -> bool:
        """Have room for a batch's buffer; whether it is new memory of the current stream."""
        if len(self.host_input) >= elements:
            return False
        self.host_input = _page_locked(2 * elements, torch.int32)
        self.input = torch.empty(2 * elements, dtype=torch.int32, device=device)
        return True

    def reserve_output(self, size: int) -> None:
        """Have room for what comes back."""
        if len(self.host_output) < size:
            self.host_output = _page_locked(2 * size, torch.uint8)


class _OnDevice(UnderWay):
    """A batch that runs on the device."""

    def __init__(self, slot: _Slot, layout: _Layout) -> None:
        self._slot = slot
        self._layout = layout
        self._embedded: Embedded | None = None

    def result(self) -> Embedded:
        """See the base class."""
        # Two threads may ask: the one that waits for it, and one whose batch needs the slot.
        with self._slot.lock:
            if self._embedded is None:
                self._slot.returned.synchronize()
                self._embedded = self._layout.split(self._slot.host_output)
                self._slot.output = None
                self._slot.owner = None
            return self._embedded


class CudaExecution(Execution):
    """On a GPU.

    Args:
        model: on its device.
        rules: how its batches are packed.
        workspace_tokens: rows of the largest batch that the workspace is made for.
        graphs: whether small batches are captured and replayed.
    """

    ahead = 2

    def __init__(
        self,
        model: PackedCausal2Vec,
        rules: PackingRules,
        workspace_tokens: int,
        graphs: bool = True,
    ) -> None:
        super().__init__(model, rules)
        self._device = model.decoder.norm.device
        self._compute, self._upload, self._download = (
            torch.cuda.Stream(self._device) for _ in range(3)
        )
        self._slots = [_Slot() for _ in range(_SLOTS)]
        self._turn = 0
        self._pool = torch.cuda.MemPool()
        self._workspace_tokens = workspace_tokens
        self._reserved = False
        self._shapes: ShapeChooser | None = None
        backends = [model.attention]
        backends += [] if model.context is None else [model.context.attention]
        # Without Triton the last layer's attention is laid out by lengths that a graph would keep.
        capturable = triton_serves(self._device) and all(b.capturable for b in backends)
        if graphs and capturable and model.pools_single_rows:
            self._shapes = ShapeChooser(model.config, model.rounding)
        self.graphs = GraphCache(self._capture)
        self._graph_pool = torch.cuda.graph_pool_handle()

    def launch(
        self,
        texts: list[TokenizedText],
        output: OutputFormat,
        batch_tokens: int,
        prompt: tuple[int, ...],
    ) -> UnderWay:
        """See the base class."""
        shape = None if self._shapes is None else self._shapes.choose(texts, len(prompt))
        with stage("pack"):
            batch = lay_out(texts, self.rules, batch_tokens, self.model.rounding, prompt, shape)
        with self._lock, torch.cuda.device(self._device):
            try:
                return self._launch(batch, output)
            except BaseException:
                # What was launched reads the slot's buffer, which the next batch overwrites.
                self._compute.synchronize()
                raise

    def out_of_memory(self) -> None:
        """See the base class."""
        with self._lock, torch.cuda.device(self._device):
            torch.cuda.synchronize(self._device)
            self.graphs.clear()
            torch.cuda.empty_cache()

    def _launch(self, batch: HostBatch, output: OutputFormat) -> UnderWay:
        slot = self._slots[self._turn]
        owner = slot.owner
        if owner is not None:  # of another thread, or never asked for
            owner.result()
        # What the caller's stream made, such as ranges, or a prompt's states.
        self._compute.wait_stream(torch.cuda.current_stream(self._device))
        self._send(batch, slot)
        with torch.cuda.stream(self._compute):
            self._compute.wait_event(slot.uploaded)
            embeddings, norms = self._run(batch, output, slot.input[: len(batch.buffer)])
            embeddings, norms = embeddings[: batch.num_texts], norms[: batch.num_texts]
            layout = _Layout(batch.num_texts, embeddings.shape[1], embeddings.dtype)
            # One run of bytes, for one copy; and a graph's results are overwritten by its next run.
            parts = [part.reshape(-1).view(torch.uint8) for part in (embeddings, norms)]
            slot.output = torch.cat(parts)
            slot.computed.record(self._compute)
        self._receive(slot)
        under_way = _OnDevice(slot, layout)
        slot.owner = under_way
        self._turn = (self._turn + 1) % _SLOTS
        return under_way

    def _send(self, batch: HostBatch, slot: _Slot) -> None:
        """Copy a batch's buffer to the device, when the slot's last one has been read."""
        if slot.reserve(len(batch.buffer), self._device):
            # What stood there before may still be read by what was launched on that stream.
            self._upload.wait_stream(torch.cuda.current_stream(self._device))
        np.copyto(slot.host_input.numpy()[: len(batch.buffer)], batch.buffer)
        with stage("copy to device"), torch.cuda.stream(self._upload):
            self._upload.wait_event(slot.computed)
            size = len(batch.buffer)
            slot.input[:size].copy_(slot.host_input[:size], non_blocking=True)
            slot.uploaded.record(self._upload)

    def _receive(self, slot: _Slot) -> None:
        """Copy a batch's result to the host, when it is computed."""
        assert slot.output is not None
        size = len(slot.output)
        slot.reserve_output(size)
        with stage("copy to host"), torch.cuda.stream(self._download):
            self._download.wait_event(slot.computed)
            slot.host_output[:size].copy_(slot.output, non_blocking=True)
            slot.returned.record(self._download)

    def _run(
        self, batch: HostBatch, output: OutputFormat, buffer: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if batch.shape is not None:
            return self.graphs.replay_for(batch, output)(buffer)
        # Before the workspace is entered: these stay.
        states = self.model.prompt_states(batch.prompt) if batch.prompt else None
        with torch.cuda.use_mem_pool(self._pool, self._device):
            self._reserve()
            return self.model.forward(batch.on(buffer), output, states)

    def _reserve(self) -> None:
        """Have the pool take one block for the largest batch; given back to it at once.

        Where that much is not there any more, half of it may be: batches are cut to what there is.
        """
        size = self._workspace_tokens * self.model.peak_bytes_per_token
        while not self._reserved:
            try:
                torch.empty(size, dtype=torch.uint8, device=self._device)
            except torch.OutOfMemoryError:
                size //= 2
                self._reserved = size < _LEAST_WORKSPACE
            else:
                self._reserved = True

    def _capture(self, batch: HostBatch, output: OutputFormat) -> Replay:
        """Capture a batch; the graph reads a buffer of its own."""
        states = self.model.prompt_states(batch.prompt) if batch.prompt else None
        own = torch.from_numpy(batch.buffer).to(self._device)
        on_device = batch.with_longest_sequences().on(own)
        for _ in range(_GRAPH_WARM_UPS):  # compiles kernels and lets libraries allocate
            self.model.forward(on_device, output, states)
        self._compute.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with other models meanwhile.
        with torch.cuda.graph(
            graph,
            pool=self._graph_pool,
            stream=self._compute,
            capture_error_mode="thread_local",
        ):
            result = self.model.forward(on_device, output, states)

        def replay(buffer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            own.copy_(buffer)
            graph.replay()
            return result

        return replay
