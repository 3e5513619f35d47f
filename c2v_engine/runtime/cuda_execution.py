"""Batches on a GPU: two under way, each with one copy there and one back, on streams of their own.

While a batch is computed the next is packed and copied to the device, and the one before is copied
back. Nothing between launch and result asks the device for a value. Activations come from a
workspace, a memory pool that holds one block for the largest batch from the first on: later batches
take parts of it, so that lengths which change from batch to batch do not tear the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock, get_ident

import numpy as np
import torch

from c2v_engine.kernels._triton import triton_serves
from c2v_engine.kernels.packed_attention import MAX_HEAD_DIM
from c2v_engine.model.causal2vec import PackedCausal2Vec
from c2v_engine.model.decoder import PromptStates
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.model.stages import stage
from c2v_engine.runtime.execution import Embedded, Execution, UnderWay
from c2v_engine.runtime.graphs import GraphCache, Replay, ShapeChooser
from c2v_engine.runtime.packing import HostBatch, PackingRules, lay_out
from c2v_engine.runtime.tokenization import TokenizedText

_SLOTS = 3
_GRAPH_WARM_UPS = 2
_LEAST_WORKSPACE = 2**20
# Of all engines of the process: to wait for a device while one of its streams is captured is an
# error there, and starting a capture does wait.
_CAPTURING = Lock()


@dataclass(frozen=True)
class _Layout:
    """How embeddings and norms stand in one run of bytes."""

    texts: int
    columns: int
    dtype: torch.dtype

    def split(self, flat: torch.Tensor) -> Embedded:
        size = self.texts * self.columns * self.dtype.itemsize
        # NumPy copies in this thread. torch would wake one for every processor, and these then spin
        # for milliseconds beside the threads that launch and tokenise.
        embeddings, norms = (
            torch.from_numpy(part.numpy().copy())
            for part in (flat[:size], flat[size : size + 4 * self.texts])
        )
        embeddings = embeddings.view(self.dtype).view(self.texts, self.columns)
        return Embedded(embeddings, norms.view(torch.float32))


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
        # Both or neither: either may find no memory.
        host, there = (
            _page_locked(2 * elements, torch.int32),
            torch.empty(2 * elements, dtype=torch.int32, device=device),
        )
        self.host_input, self.input = host, there
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
        batch_tokens: most rows of a batch where a call asks for none; the workspace is made for it.
        graphs: whether small batches are captured and replayed.
    """

    ahead = 2

    def __init__(
        self,
        model: PackedCausal2Vec,
        rules: PackingRules,
        batch_tokens: int,
        graphs: bool = True,
    ) -> None:
        super().__init__(model, rules, batch_tokens)
        self._device = model.decoder.norm.device
        with torch.cuda.device(self._device):  # pools and events are of the current one
            self._streams = tuple(torch.cuda.Stream(self._device) for _ in range(3))
            self._slots = [_Slot() for _ in range(_SLOTS)]
            # Another allocator than torch's own has no pools.
            native = torch.cuda.get_allocator_backend() == "native"
            self._pool = torch.cuda.MemPool() if native else None
            self._graph_pool = torch.cuda.graph_pool_handle()
        self._compute, self._upload, self._download = self._streams
        self._turn = 0
        self._warm_threads: set[int] = set()
        self._reserved = False
        self._shapes: ShapeChooser | None = None
        backends = [model.attention]
        backends += [] if model.context is None else [model.context.attention]
        # Without Triton the last layer's attention is laid out by lengths that a graph would keep.
        in_triton = triton_serves(self._device) and model.decoder.shape.head_dim <= MAX_HEAD_DIM
        capturable = in_triton and all(backend.capturable for backend in backends)
        if graphs and capturable and model.pools_single_rows:
            self._shapes = ShapeChooser(model.config, model.rounding)
        self.graphs = GraphCache()

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
                # What was launched reads the slot's buffers, which the next batch overwrites.
                self._wait()
                raise

    def out_of_memory(self) -> None:
        """See the base class."""
        self.close()
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    def close(self) -> None:
        """See the base class: the graphs and their memory."""
        with self._lock, torch.cuda.device(self._device), _CAPTURING:
            self._wait()
            self.graphs.clear()

    def _wait(self) -> None:
        """Wait for all that was launched here, and for nothing else on the device."""
        for stream in self._streams:
            stream.synchronize()

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
            replay = self.graphs.replay_for(batch, output, self._capture)
            if replay is not None:
                return replay(buffer, output.ranges)
        # Before the workspace is entered: these stay.
        states = self._prompt_states(batch)
        self._warm_libraries()
        if self._pool is None:
            return self.model.forward(batch.on(buffer), output, states)
        with torch.cuda.use_mem_pool(self._pool, self._device):
            self._reserve()
            return self.model.forward(batch.on(buffer), output, states)

    def _warm_libraries(self) -> None:
        """Have cuBLAS take its memory for this thread and stream outside of the workspace.

        It keeps it for good, in the middle of whatever block it was cut from.
        """
        if get_ident() not in self._warm_threads:
            ones = torch.ones(16, 16, dtype=self.model.decoder.norm.dtype, device=self._device)
            torch.nn.functional.linear(ones, ones, ones[0])
            self._warm_threads.add(get_ident())

    def _reserve(self) -> None:
        """Have the pool take one block for the largest batch; given back to it at once.

        Where that much is not there any more, half of it may be: batches are cut to what there is.
        """
        size = self.batch_tokens * self.model.peak_bytes_per_token
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
        states = self._prompt_states(batch)
        own = torch.from_numpy(batch.buffer).to(self._device)
        ranges = None if output.ranges is None else output.ranges.clone()
        kept = replace(output, ranges=ranges)
        on_device = batch.with_longest_sequences().on(own)
        for _ in range(_GRAPH_WARM_UPS):  # compiles kernels and lets libraries allocate
            self.model.forward(on_device, kept, states)
        self._compute.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with other models meanwhile, but not wait for the whole device.
        with (
            _CAPTURING,
            torch.cuda.graph(
                graph,
                pool=self._graph_pool,
                stream=self._compute,
                capture_error_mode="thread_local",
            ),
        ):
            result = self.model.forward(on_device, kept, states)
        return _Captured(graph, own, ranges, result, states)


@dataclass(frozen=True)
class _Captured:
    """A graph, and the tensors that it reads and writes where they stood at its capture.

    Attributes:
        graph: captured.
        buffer: of the batch.
        ranges: of the output's format, or None.
        result: embeddings and norms.
        states: of the prompt, or None; nothing else may keep them.
    """

    graph: torch.cuda.CUDAGraph
    buffer: torch.Tensor
    ranges: torch.Tensor | None
    result: tuple[torch.Tensor, torch.Tensor]
    states: PromptStates | None

    def __call__(
        self, buffer: torch.Tensor, ranges: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Replay``."""
        assert buffer.shape == self.buffer.shape, (buffer.shape, self.buffer.shape)
        self.buffer.copy_(buffer)
        if self.ranges is not None:
            assert ranges is not None
            self.ranges.copy_(ranges)
        self.graph.replay()
        return self.result
