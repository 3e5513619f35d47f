"""sentence-transformers as a provider: its stock modules, its ``encode``, its best batch size."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.forms import refuse_other_dtypes
from c2v_engine.bench.providers.libraries import library
from c2v_engine.bench.providers.stock_folder import no_stock_folder, write_stock_folder
from c2v_engine.bench.workloads import Workload
from c2v_engine.reference import Causal2VecReference

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["SentenceTransformers", "open_sentence_transformers"]

BATCH_SIZES = (8, 16, 32, 64)
TRIED_TOKENS = 8192
"""Of the texts with which sizes are tried, about; fewer are tried all."""


def open_sentence_transformers(session: Session, spec: Spec) -> Provider:
    """Transformer, Pooling and Normalize; where no such form is, a module over stock modules."""
    refuse_other_dtypes(spec)
    if not session.description.config.normalize:
        raise UnusableError("sentence-transformers is written for normalised embeddings")
    st = library("sentence_transformers", "peers")
    if no_stock_folder(session.description.config):
        reference = session.reference(getattr(torch, spec.dtype))
        modules = [reference_module(reference), st.sentence_transformer.modules.Normalize()]
        model = st.SentenceTransformer(modules=modules, device=str(session.device))
        return SentenceTransformers(model, "one module over stock transformers")
    with tempfile.TemporaryDirectory(prefix="c2v-bench-") as folder:
        write_stock_folder(session.source, Path(folder))
        model = st.SentenceTransformer(
            folder,
            device=str(session.device),
            local_files_only=True,
            model_kwargs={
                "dtype": getattr(torch, spec.dtype),
                "attn_implementation": "sdpa",
            },
        )
    return SentenceTransformers(model, "Transformer, Pooling, Normalize")


class SentenceTransformers(Provider):
    """``SentenceTransformer.encode`` with the batch size that is fastest here.

    Args:
        model: a ``SentenceTransformer``.
        modules: what it is made of, in words.
    """

    settles = True

    def __init__(self, model: Any, modules: str) -> None:
        self._model = model
        self._modules = modules
        self._batch_size = BATCH_SIZES[-1]

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class; tries the batch sizes on a part of the texts."""
        call = min(workload.texts_per_call or len(workload.texts), len(workload.texts))
        # A batch is no larger than a call: of the sizes that hold a whole one, the first will do.
        sizes = [size for size in BATCH_SIZES if size == BATCH_SIZES[0] or size // 2 < call]
        part = tried_part(workload)
        seconds = {size: self._time(part, size) for size in sizes} if len(sizes) > 1 else {}
        self._batch_size = min(sizes, key=lambda size: seconds.get(size, 0.0))
        version = library("sentence_transformers").__version__
        self.note = (
            f"sentence-transformers {version}, {self._modules}, batches of {self._batch_size}, sdpa"
        )
        return partial(self._encode_all, workload)

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        vectors = torch.cat([torch.from_numpy(part) for part in self._encode_all(workload)])
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    def _encode_all(self, workload: Workload) -> list[Any]:
        return [
            self._model.encode(
                texts,
                prompt=workload.prompt,
                batch_size=self._batch_size,
                show_progress_bar=False,
            )
            for texts in workload.calls()
        ]

    def _time(self, workload: Workload, batch_size: int) -> float:
        self._batch_size = batch_size
        start = time.perf_counter()
        self._encode_all(workload)
        return time.perf_counter() - start


def tried_part(workload: Workload) -> Workload:
    """Texts in whole blocks of neighbours by length: batches are padded as those of all texts are.

    Among some of every length a large batch would span more lengths than it does among all.
    """
    texts, largest = workload.texts, BATCH_SIZES[-1]
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    blocks = [order[begin : begin + largest] for begin in range(0, len(order), largest)]
    share = min(1.0, TRIED_TOKENS / workload.decoder_tokens)
    # Two at least, the long and the short ones: of one alone, padding tells nothing.
    count = min(len(blocks), max(2, round(share * len(blocks))))
    chosen = np.linspace(0, len(blocks) - 1, count, dtype=int)
    return workload.of([row for number in chosen for row in blocks[number]])


def reference_module(reference: Causal2VecReference) -> Any:
    """The plain reference as the input module of a ``SentenceTransformer``."""
    from sentence_transformers.sentence_transformer.modules import InputModule

    class StockModules(InputModule):  # type: ignore[misc]
        """Stock encoder, projector and decoder, padded batches."""

        def __init__(self) -> None:
            super().__init__()
            self.reference = reference
            self.max_seq_length = reference.config.max_length

        def preprocess(
            self, inputs: Sequence[Any], prompt: str | None = None, **_: Any
        ) -> dict[str, Any]:
            """Token ids of both tokenizers, padded."""
            return self.reference.tokenize(list(inputs), prompt or "")

        def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
            """Adds ``sentence_embedding`` ``[batch, dimension]``."""
            features["sentence_embedding"] = self.reference(features)
            return features

        def get_embedding_dimension(self) -> int:
            """Width of a vector."""
            return self.reference.dimension

        def save(self, output_path: str, *_: Any, **__: Any) -> None:
            """Nothing to save: the checkpoint is on disk."""

    return StockModules()
