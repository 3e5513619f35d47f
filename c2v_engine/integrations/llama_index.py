"""The engine as an embedding of LlamaIndex, in the same process.

``VectorStoreIndex(nodes, embed_model=Causal2VecEmbedding("my-model"))``. Its arguments are those of
LlamaIndex's ``HuggingFaceEmbedding``, where they have a meaning here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from c2v_engine.errors import MissingPackageError
from c2v_engine.integrations.local_model import LocalModel, Side, say_engine

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, field_serializer
except ImportError as error:
    raise MissingPackageError("llama-index-core", "llama-index") from error

# The texts that the engine sorts by length and packs together.
_EMBED_BATCH_SIZE = 8192


class Causal2VecEmbedding(BaseEmbedding):
    """Embeds texts as ``encode_document`` does, and queries as ``encode_query``.

    The asynchronous forms run in a thread. ``to_dict`` and pickles hold the fields, and the model
    is opened again where it is needed; all of one model and options in a process share one engine.

    Args:
        model_name: a checkpoint's folder or Hub name; None for the small model that ships with the
            package.
        query_instruction: the prompt of queries, as it is; None for the checkpoint's.
        text_instruction: that of texts; None for the checkpoint's.
        normalize: as ``normalize_embeddings`` in ``encode``: None for the checkpoint's setting.
        truncate_dim: as in ``encode``.
        embed_batch_size: texts of one call of the engine, which packs them by their tokens. It is
            no budget of memory, so LlamaIndex's default of 10 and most of 2,048 do not hold here.
        device: as in ``Causal2Vec.from_pretrained``; None for ``auto``.
        engine: an open ``Causal2Vec`` in place of ``model_name``, ``device`` and ``model_kwargs``.
            It does not pickle, and ``from_dict`` needs it again: ``from_dict(data, engine=...)``.
        show_progress_bar: as in ``encode``.
        model_kwargs: more options of ``Causal2Vec.from_pretrained``, such as ``dtype``.
        kwargs: fields of every embedding of LlamaIndex, such as ``callback_manager``.

    Raises:
        InputError: options that can not be.
        CheckpointError: the model can not be loaded.
        BackendError: not on this device.
        pydantic.ValidationError: a field of another type.
    """

    model_name: str | None = Field(  # type: ignore[assignment]  # None is the default model
        default=None, description="Folder or Hub name of the model."
    )
    query_instruction: str | None = Field(default=None, description="Prompt of queries.")
    text_instruction: str | None = Field(default=None, description="Prompt of texts.")
    normalize: bool | None = Field(default=None, description="None: the checkpoint's setting.")
    truncate_dim: int | None = Field(default=None, description="Dimensions to keep.")
    embed_batch_size: int = Field(
        default=_EMBED_BATCH_SIZE, description="Texts of one call of the engine.", gt=0
    )
    device: str | None = Field(default=None, description="Where it computes; None: auto.")
    engine: Any = Field(default=None, description="An open engine.", repr=False)
    show_progress_bar: bool = Field(default=False, description="Whether to show a progress bar.")
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More options of Causal2Vec.from_pretrained."
    )
    _model: LocalModel = PrivateAttr()

    def __init__(self, model_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(**{"model_name": model_name, **kwargs})
        self._model = LocalModel(self.model_name, self.model_kwargs, self.device, self.engine)
        self._model.engine.output_dimension(self.truncate_dim)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex keeps it."""
        return "Causal2VecEmbedding"

    @field_serializer("engine")
    def _say_engine(self, engine: Any) -> str | None:
        """So that caches of LlamaIndex know an engine again."""
        return say_engine(engine)

    def __getstate__(self) -> dict[str, Any]:
        self._model.check_pickling()  # LlamaIndex would leave the engine out
        state: dict[str, Any] = super().__getstate__()
        return state

    def _embed(self, side: Side, texts: list[str]) -> list[list[float]]:
        options: dict[str, Any] = {
            "truncate_dim": self.truncate_dim,
            "normalize_embeddings": self.normalize,
        }
        prompt = self.query_instruction if side == "query" else self.text_instruction
        if prompt is not None:
            options["prompt"] = prompt
        return self._model.embed(side, texts, self.show_progress_bar, **options)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed("query", [query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed("document", [text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed("document", texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
