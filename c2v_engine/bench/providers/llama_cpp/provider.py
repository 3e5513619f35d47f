"""llama.cpp as a provider: tokens on the host, rows through its C functions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.forms import StockTokenizer, no_last_token_form
from c2v_engine.bench.providers.libraries import library
from c2v_engine.bench.providers.llama_cpp.context import Context, Model, Settings
from c2v_engine.bench.providers.llama_cpp.export import not_exportable, write_gguf
from c2v_engine.bench.workloads import Workload

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["LlamaCpp", "open_llama_cpp"]

CANDIDATES = (Settings(), Settings(sequences=16, unified=False), Settings(batch_rows=1024))
"""Of several that were compared; batches of 2048 rows and plain attention were not faster."""
TRIED_SHARE = 0.25
TRIED_TOKENS = 4096
"""Of the texts with which settings are tried, so that trying takes no longer than two calls."""
TRIES = 2
"""Of each, the shorter counts."""


def open_llama_cpp(session: Session, spec: Spec) -> Provider:
    """A last-token checkpoint's decoder, written to a file that goes when the provider does."""
    source = session.source
    if session.device.type != "cpu":
        raise UnusableError("llama.cpp is measured on the CPU here")
    description = source.description
    config, shape = description.config, description.decoder_shape
    why_not = no_last_token_form(config) or not_exportable(
        description.decoder_config, shape, spec.dtype
    )
    if why_not:
        raise UnusableError(f"llama.cpp {why_not}")
    for name in ("llama_cpp", "gguf"):
        library(name, "peers")
    decoder = source.module("decoder", torch.float32)
    table = decoder.get_input_embeddings().weight.detach().cpu().numpy().copy()
    with tempfile.TemporaryDirectory(prefix="c2v-bench-") as folder:
        path = Path(folder) / "decoder.gguf"
        write_gguf(path, decoder, shape, config.max_length, spec.dtype)
        model = Model(path)  # maps the file, which lives on without its name
    return LlamaCpp(model, StockTokenizer.load(source), table, spec.dtype == "float32")


class LlamaCpp(Provider):
    """Batches of many texts, the longest first, with the settings that are fastest here.

    Args:
        model: of the decoder; closed with the provider.
        tokenizer: the checkpoint's own.
        table: its token embeddings, float32 ``[vocabulary, width]``.
        exact: whether its cache is float32.
    """

    settles = True

    def __init__(
        self, model: Model, tokenizer: StockTokenizer, table: np.ndarray, exact: bool
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._table = table
        self._exact = exact
        self._threads = torch.get_num_threads()
        # Of the texts, not of what the model could take: a batch is made to hold the longest.
        self._longest = 1
        self._settings = CANDIDATES[0]
        self._context: Context | None = None

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class; tries the settings that this machine has memory for on some texts.

        Raises:
            UnusableError: it has for none.
        """
        sequences = self._tokenizer(workload.texts, workload.prompt)
        self._longest = max(len(ids) for ids, _ in sequences)
        share = min(TRIED_SHARE, TRIED_TOKENS / workload.decoder_tokens)
        part = workload.some(max(1, round(share * len(workload.texts))))
        seconds: dict[Settings, float] = {}
        for settings in CANDIDATES:
            try:
                self._use(settings)
            except UnusableError as error:
                refusal = error
                continue
            seconds[settings] = min(self._time(part) for _ in range(TRIES))
        if not seconds:
            raise refusal
        best = min(seconds, key=seconds.__getitem__)
        self._use(best)
        best = replace(best, batch_rows=max(best.batch_rows, self._longest))
        version = library("llama_cpp").__version__
        self.note = (
            f"llama-cpp-python {version}, no LM head, {best}, {self._threads} threads, "
            f"{'float32' if self._exact else 'float16'} cache"
        )
        return partial(self.embed, workload)

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        calls = [self._encode(texts, workload.prompt) for texts in workload.calls()]
        return torch.nn.functional.normalize(torch.from_numpy(np.concatenate(calls)), dim=1)

    def _encode(self, texts: list[str], prompt: str) -> np.ndarray:
        sequences = [ids for ids, _ in self._tokenizer(texts, prompt)]
        order = sorted(range(len(texts)), key=lambda row: -len(sequences[row]))
        context = self._holding(len(sequences[order[0]]))
        result = np.empty((len(texts), self._model.width), dtype=np.float32)
        result[order] = context.embed([sequences[row] for row in order], self._table)
        return result

    def _time(self, workload: Workload) -> float:
        start = time.perf_counter()
        self.embed(workload)
        return time.perf_counter() - start

    def _holding(self, longest: int) -> Context:
        """The context, opened anew where a text is longer than it holds."""
        if self._context is None or longest > self._longest:
            self._longest = max(self._longest, longest)
            return self._use(self._settings)
        return self._context

    def _use(self, settings: Settings) -> Context:
        self._close_context()
        self._settings = settings
        self._context = Context(self._model, settings, self._longest, self._threads, self._exact)
        return self._context

    def _close_context(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context = None

    def close(self) -> None:
        """See the base class."""
        self._close_context()
        self._model.close()
