"""The engine as embedders of Haystack, in the same process.

``Causal2VecTextEmbedder`` embeds a query, ``Causal2VecDocumentEmbedder`` documents. Arguments and
outputs are those of Haystack's ``SentenceTransformersTextEmbedder`` and its sibling, where they
have a meaning here. Of one model and device, both share one engine.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from c2v_engine.errors import MissingPackageError
from c2v_engine.integrations.local_model import (
    LocalModel,
    Side,
    check_encode_options,
    check_given_once,
)

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import ComponentDevice
except ImportError as error:
    raise MissingPackageError("haystack-ai", "haystack") from error

if TYPE_CHECKING:
    from c2v_engine.kernels.dual_token_pool import Precision


class _Embedder:
    """What both components share: their arguments, and how texts are embedded with them."""

    _side: Side

    def __init__(
        self,
        *,
        model: str | None = None,
        device: ComponentDevice | str | None = None,
        prefix: str = "",
        suffix: str = "",
        progress_bar: bool = True,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.device = ComponentDevice.from_str(device) if isinstance(device, str) else device
        self.prefix = prefix
        self.suffix = suffix
        self.progress_bar = progress_bar
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.precision = precision
        self.model_kwargs = model_kwargs
        self.encode_kwargs = encode_kwargs
        check_encode_options(encode_kwargs or {})
        own = {
            "normalize_embeddings": normalize_embeddings,
            "truncate_dim": truncate_dim,
            "precision": None if precision == "float32" else precision,
        }
        check_given_once(own, "encode_kwargs", encode_kwargs or {})
        name = None if self.device is None else self.device.to_torch_str()
        self._model = LocalModel(model, model_kwargs or {}, name)

    def warm_up(self) -> None:
        """Load the model.

        Raises:
            InputError: an impossible ``truncate_dim`` or ``precision``.
            CheckpointError: the model can not be loaded.
            BackendError: not on this device.
        """
        self._model.engine.output_dimension(self.truncate_dim, self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Its arguments, as Haystack stores them."""
        arguments: dict[str, Any] = default_to_dict(self, **self._arguments())
        return arguments

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Make one of what ``to_dict`` gave.

        Args:
            data: as Haystack stores it.
        """
        return default_from_dict(cls, data)

    def _arguments(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "device": self.device,
            "prefix": self.prefix,
            "suffix": self.suffix,
            "progress_bar": self.progress_bar,
            "normalize_embeddings": self.normalize_embeddings,
            "truncate_dim": self.truncate_dim,
            "precision": self.precision,
            "model_kwargs": self.model_kwargs,
            "encode_kwargs": self.encode_kwargs,
        }

    def _get_telemetry_data(self) -> dict[str, Any]:
        return {}  # Haystack would send a model's name, which may be the path of a folder

    def _embed(self, texts: list[str]) -> list[list[float]]:
        self.warm_up()
        options: dict[str, Any] = {
            "normalize_embeddings": self.normalize_embeddings,
            "truncate_dim": self.truncate_dim,
            "precision": self.precision,
            **(self.encode_kwargs or {}),
        }
        texts = [f"{self.prefix}{text}{self.suffix}" for text in texts]
        return self._model.embed(self._side, texts, None if self.progress_bar else False, **options)


@component
class Causal2VecTextEmbedder(_Embedder):
    """Embeds a text, as a query: with the prompt that ``encode_query`` chooses.

    Args:
        model: a checkpoint's folder or Hub name; None for the small model that ships with the
            package.
        device: None for CUDA where there is one.
        prefix: begins the text, after the checkpoint's prompt; another prompt goes into
            ``encode_kwargs``.
        suffix: ends it.
        progress_bar: whether there may be one, which ``encode`` shows for many texts in a terminal.
        normalize_embeddings: as in ``encode``: None for the checkpoint's setting.
        truncate_dim: as there.
        precision: as there.
        model_kwargs: more options of ``Causal2Vec.from_pretrained``, such as ``dtype``.
        encode_kwargs: more options of ``encode``, such as ``prompt`` or ``prompt_name``.

    Raises:
        InputError: options that there are not. What the model refuses is raised by ``warm_up``.
    """

    _side = "query"

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        """Embed a text.

        Args:
            text: one.

        Returns:
            ``embedding``: a list of numbers.

        Raises:
            TypeError: it is not a string.
            InputError: it can not be embedded, or options that can not be.
        """
        if not isinstance(text, str):
            raise TypeError(
                f"text is {type(text).__name__}, expected a string: documents go to "
                "Causal2VecDocumentEmbedder"
            )
        return {"embedding": self._embed([text])[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, list[float]]:
        """``run`` in a thread, so that the event loop is free.

        Args:
            text: one.
        """
        return await asyncio.to_thread(self.run, text)


@component
class Causal2VecDocumentEmbedder(_Embedder):
    """Embeds documents, with the prompt that ``encode_document`` chooses.

    Args:
        model: as for ``Causal2VecTextEmbedder``, and so are the rest.
        device: as there.
        prefix: as there; before the meta data.
        suffix: as there.
        progress_bar: as there.
        normalize_embeddings: as there.
        meta_fields_to_embed: of a document's meta data, which stand before its content.
        embedding_separator: between them.
        truncate_dim: as there.
        precision: as there.
        model_kwargs: as there.
        encode_kwargs: as there.

    Raises:
        InputError: options that there are not. What the model refuses is raised by ``warm_up``.
    """

    _side = "document"

    def __init__(
        self,
        *,
        model: str | None = None,
        device: ComponentDevice | str | None = None,
        prefix: str = "",
        suffix: str = "",
        progress_bar: bool = True,
        normalize_embeddings: bool | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
    ) -> None:
        # ``component`` makes the class anew, which a plain super() does not know.
        _Embedder.__init__(
            self,
            model=model,
            device=device,
            prefix=prefix,
            suffix=suffix,
            progress_bar=progress_bar,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
            precision=precision,
            model_kwargs=model_kwargs,
            encode_kwargs=encode_kwargs,
        )
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Embed documents, all in one call of the engine.

        Args:
            documents: any number of them.

        Returns:
            ``documents``: the same, with embeddings.

        Raises:
            TypeError: not a list of documents.
            InputError: a document that can not be embedded, named by its place in the list, or
                options that can not be.
        """
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise TypeError(
                f"documents is {type(documents).__name__}, expected a list of Document: a text "
                "goes to Causal2VecTextEmbedder"
            )
        embeddings = self._embed([self._text(document) for document in documents])
        pairs = zip(documents, embeddings, strict=True)
        return {"documents": [replace(document, embedding=vector) for document, vector in pairs]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, list[Document]]:
        """``run`` in a thread, so that the event loop is free.

        Args:
            documents: any number of them.
        """
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        meta = [document.meta.get(name) for name in self.meta_fields_to_embed]
        values = [str(value) for value in meta if value is not None]
        return self.embedding_separator.join([*values, document.content or ""])

    def _arguments(self) -> dict[str, Any]:
        return {
            **_Embedder._arguments(self),
            "meta_fields_to_embed": self.meta_fields_to_embed,
            "embedding_separator": self.embedding_separator,
        }
