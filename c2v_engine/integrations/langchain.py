"""The engine as embeddings of LangChain, in the same process.

``InMemoryVectorStore(Causal2VecEmbeddings(model="my-model"))``, and so with any vector store. Its
fields are those of LangChain's ``HuggingFaceEmbeddings``, where they have a meaning here.
"""

from __future__ import annotations

from typing import Any

from c2v_engine.errors import MissingPackageError
from c2v_engine.integrations.local_model import (
    LocalModel,
    Side,
    check_encode_options,
    check_given_once,
    say_engine,
)

try:
    from langchain_core.embeddings import Embeddings
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer
except ImportError as error:
    raise MissingPackageError("langchain-core", "langchain") from error

_PROMPTS = ("prompt", "prompt_name")


class Causal2VecEmbeddings(BaseModel, Embeddings):
    """Embeds documents as ``encode_document`` does, and queries as ``encode_query``.

    The asynchronous forms run in LangChain's executor and leave the event loop free. It pickles as
    its fields, and the model is opened again where it is needed; all of one model and options in a
    process share one engine.

    Args:
        kwargs: the fields.

    Raises:
        InputError: options that can not be.
        CheckpointError: the model can not be loaded.
        BackendError: not on this device.
        pydantic.ValidationError: a field that there is not, or of another type.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    model_name: str | None = Field(default=None, alias="model")
    """A checkpoint's folder or Hub name; None for the small model that ships with the package."""
    engine: Any = Field(default=None, repr=False)
    """An open ``Causal2Vec`` in place of ``model`` and ``model_kwargs``; it does not pickle, and
    what ``model_dump`` gives names it and needs it again."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options of ``Causal2Vec.from_pretrained``, such as ``device`` or ``dtype``."""
    truncate_dim: int | None = None
    """As in ``encode``."""
    normalize_embeddings: bool | None = None
    """As in ``encode``: None for the checkpoint's setting."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More options of ``encode``; a ``prompt`` or ``prompt_name`` is that of documents."""
    query_encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """What is different for queries, such as their ``prompt``."""
    show_progress: bool = False
    """Whether documents show a progress bar."""
    _model: LocalModel = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for field in ("encode_kwargs", "query_encode_kwargs"):
            check_encode_options(getattr(self, field))
            check_given_once(self._own_options(), field, getattr(self, field))
        self._model = LocalModel(self.model_name, self.model_kwargs, engine=self.engine)
        self._model.engine.output_dimension(self._options("document").get("truncate_dim"))

    @field_serializer("engine")
    def _say_engine(self, engine: Any) -> str | None:
        """Text, which is refused in the place of an engine: no other one is opened for it."""
        return say_engine(engine)

    def __getstate__(self) -> dict[Any, Any]:
        self._model.check_pickling()
        return super().__getstate__()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, all in one call of the engine.

        Args:
            texts: any number of them.

        Returns:
            A list of numbers for each.

        Raises:
            TextError: a text that can not be embedded, named by its row.
            InputError: options that can not be.
        """
        return self._model.embed("document", texts, self.show_progress, **self._options("document"))

    def embed_query(self, text: str) -> list[float]:
        """Embed a query.

        Args:
            text: one.

        Returns:
            A list of numbers.

        Raises:
            TextError: it can not be embedded.
            InputError: options that can not be.
        """
        return self._model.embed("query", [text], False, **self._options("query"))[0]

    def _own_options(self) -> dict[str, Any]:
        return {
            "truncate_dim": self.truncate_dim,
            "normalize_embeddings": self.normalize_embeddings,
        }

    def _options(self, side: Side) -> dict[str, Any]:
        if side == "document":
            return {**self._own_options(), **self.encode_kwargs}
        shared = {name: it for name, it in self.encode_kwargs.items() if name not in _PROMPTS}
        return {**self._own_options(), **shared, **self.query_encode_kwargs}
