"""vLLM as a provider, in this process, on a GPU.

It has never been run: no machine that this was written on had vLLM. It is written from the names of
vLLM 0.33, and the check of its vectors tells whether it computes what it should.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.forms import StockTokenizer, no_last_token_form, refuse_other_dtypes
from c2v_engine.bench.providers.libraries import library
from c2v_engine.bench.providers.stock_folder import write_stock_folder
from c2v_engine.bench.workloads import Workload

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["Vllm", "open_vllm"]

MEMORY_SHARE = 0.4
"""Of the GPU: the engine and others hold their weights beside it."""


def open_vllm(session: Session, spec: Spec) -> Provider:
    """A last-token checkpoint's decoder, from a folder of sentence-transformers."""
    if session.device.type != "cuda":
        raise UnusableError("vllm is measured on a GPU here")
    refuse_other_dtypes(spec)
    why_not = no_last_token_form(session.description.config)
    if why_not:
        raise UnusableError(f"vllm here {why_not}")
    vllm = library("vllm")
    folder = tempfile.TemporaryDirectory(prefix="c2v-bench-")
    try:
        # Its modules.json tells vLLM of pooling at the last token, and of normalising.
        write_stock_folder(session.source, Path(folder.name))
        llm = vllm.LLM(
            model=folder.name,
            runner="pooling",
            dtype=spec.dtype,
            max_model_len=session.description.config.max_length,
            gpu_memory_utilization=MEMORY_SHARE,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
    except BaseException:
        folder.cleanup()
        raise
    return Vllm(llm, folder, StockTokenizer.load(session.source), vllm.__version__)


class Vllm(Provider):
    """``LLM.embed`` over token ids.

    Args:
        llm: a ``vllm.LLM``.
        folder: of the model; removed with the provider.
        tokenizer: the checkpoint's own.
        version: of vLLM.
    """

    elsewhere = True

    def __init__(
        self,
        llm: Any,
        folder: tempfile.TemporaryDirectory[str],
        tokenizer: StockTokenizer,
        version: str,
    ) -> None:
        self._llm = llm
        self._folder = folder
        self._tokenizer = tokenizer
        self.note = f"vllm {version}, in this process, token ids"

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        return partial(self.embed, workload)

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        vectors = []
        for texts in workload.calls():
            sequences = self._tokenizer(texts, workload.prompt)
            prompts = [{"prompt_token_ids": ids.tolist()} for ids, _ in sequences]
            outputs = self._llm.embed(prompts, use_tqdm=False)
            vectors += [output.outputs.embedding for output in outputs]
        return torch.nn.functional.normalize(torch.tensor(vectors, dtype=torch.float32), dim=1)

    def close(self) -> None:
        """See the base class."""
        del self._llm
        gc.collect()
        torch.cuda.empty_cache()
        self._folder.cleanup()
