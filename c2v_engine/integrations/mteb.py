"""The engine as an encoder of mteb, the Massive Text Embedding Benchmark (release 2).

``mteb.evaluate(MtebEncoder(engine), tasks)`` runs any of its text tasks.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2v_engine.errors import InputError, MissingPackageError

try:
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta
except ImportError as error:
    raise MissingPackageError("mteb (release 2 or later)", "mteb") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from c2v_engine import Causal2Vec

PRECISIONS = ("float32", "float16")


class MtebEncoder(AbsEncoder):  # type: ignore[misc]
    """A ``Causal2Vec`` as mteb calls it.

    A text's prompt is the first of these that there is, among ``prompts`` and the checkpoint's own
    prompts: ``<task>-query`` or ``<task>-document``, ``<task>``, the same two of the task's type,
    ``query`` or ``document``; without one, what ``encode_query`` and ``encode_document`` choose for
    retrieval, and the checkpoint's default prompt for the rest.

    Args:
        engine: embeds the texts.
        prompts: prompts by such a name, which win over the checkpoint's of the same name.
        truncate_dim: as in ``encode``.
        precision: ``float32`` or ``float16``. Levels and packed bits are not vectors to mteb, which
            would compare their bytes.
        name: ``organization/model``, under which mteb keeps results; None for the Hub name the
            engine was opened by, else ``c2v-engine/`` and the last part of its folder.

    Attributes:
        mteb_model_meta: what mteb says of the model. Results are cached by name and revision, so
            the revision stands for all that changes them: the checkpoint's fingerprint, the dtype
            of the computation, and ``prompts``, ``truncate_dim`` and ``precision`` where given.

    Raises:
        InputError: a name without an organization, or an impossible ``truncate_dim`` or
            ``precision``.
    """

    def __init__(
        self,
        engine: Causal2Vec,
        *,
        prompts: Mapping[str, str] | None = None,
        truncate_dim: int | None = None,
        precision: str = PRECISIONS[0],
        name: str | None = None,
    ) -> None:
        name = _default_name(engine.name) if name is None else name
        if "/" not in name:
            raise InputError(f"name is {name!r}, expected organization/model")
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}, expected {' or '.join(PRECISIONS)}")
        self.model = engine
        self.model_prompts = {**engine.prompts, **(prompts or {})}
        self._truncate_dim = truncate_dim
        self._precision = precision
        info = engine.info()
        parts = [info["fingerprint"], info["dtype"]]
        if prompts:
            text = json.dumps(sorted(prompts.items())).encode()
            parts.append(f"prompts-{blake2b(text, digest_size=4).hexdigest()}")
        if truncate_dim is not None:
            parts.append(f"truncated-{truncate_dim}")
        if precision != PRECISIONS[0]:
            parts.append(precision)
        self.mteb_model_meta = ModelMeta(
            name=name,
            revision="-".join(parts),
            loader=None,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=info["max length"],
            embed_dim=engine.output_dimension(truncate_dim),
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=any(self.model_prompts.values()),
            training_datasets=None,
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed the texts of a data loader.

        Args:
            inputs: batches with a list of strings under ``text``.
            task_metadata: the task's, which chooses the prompt.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: query, document or None.
            kwargs: mteb's ``encode_kwargs``. ``show_progress_bar`` is that of ``encode``;
                ``batch_size`` changes nothing, for batches are filled by tokens; another
                ``precision`` than the encoder's is refused, for mteb keeps results without it.

        Returns:
            ``[texts, dimensions]``.

        Raises:
            InputError: a batch that holds no texts, or options that can not be.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                found = ", ".join(batch)
                raise InputError(f"task {task_metadata.name}: it has {found}, expected text")
            texts.extend(batch["text"])
        asked = kwargs.get("precision", self._precision)
        if asked != self._precision:
            raise InputError(
                f"encode_kwargs: precision is {asked!r}, the encoder has {self._precision!r}: "
                "choose it by MtebEncoder(precision=...)"
            )
        options: dict[str, Any] = {
            "truncate_dim": self._truncate_dim,
            "precision": self._precision,
        }
        if "show_progress_bar" in kwargs:
            options["show_progress_bar"] = kwargs["show_progress_bar"]
        prompt_name = self.get_prompt_name(task_metadata, prompt_type)
        if prompt_name is not None:
            options["prompt"] = self.model_prompts[prompt_name]
        ways: dict[Any, Callable[..., Any]]
        ways = {"query": self.model.encode_query, "document": self.model.encode_document}
        encode = ways.get(getattr(prompt_type, "value", prompt_type), self.model.encode)
        embeddings: np.ndarray = encode(texts, **options)
        return embeddings


def _default_name(name: str) -> str:
    if Path(name).is_dir() or "/" not in name:
        return f"c2v-engine/{Path(name).resolve().name}"
    return name
