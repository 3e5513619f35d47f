"""The engine inside sentence-transformers: ``SentenceTransformer(path, trust_remote_code=True)``.

A checkpoint's ``modules.json`` names ``Causal2VecModule``, which holds an engine. It makes the
model that loads it a ``SentenceTransformer`` of this module, whose ``encode`` hands the engine many
texts at a time, and what sentence-transformers would else do to finished vectors: cutting,
normalising and quantising them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from c2v_engine.engine import Causal2Vec
from c2v_engine.errors import (
    BackendError,
    CheckpointError,
    InputError,
    MissingPackageError,
    TextError,
)
from c2v_engine.model.assemble import replace_checkpoint
from c2v_engine.model.checkpoint import CheckpointDescription, LoadOptions
from c2v_engine.model.fingerprint import checkpoint_fingerprint
from c2v_engine.model.modules_json import (
    config_with_settings,
    read_settings,
)
from c2v_engine.runtime.opening import PipelineOptions, open_described
from c2v_engine.runtime.ranges import RANGES_NAME, Ranges

try:
    from sentence_transformers import SentenceTransformer as Base
    from sentence_transformers.sentence_transformer.modules import InputModule
except ImportError as error:
    raise MissingPackageError(
        "sentence-transformers (release 5.4 or later)", "sentence-transformers"
    ) from error

__all__ = ["Causal2VecModule", "SentenceTransformer"]

Features = dict[str, Any]

# The keyword by which ``encode`` reaches the module, through all that lies between.
_OPTIONS = "engine_options"
# Texts of one call of the engine, which sorts and packs so many together.
_WINDOW_TEXTS = 8192
# What is so where ``encode`` is not ours, and whose is.
_LIMITS = "batches are as small as batch_size says, and truncate_dim cuts the joined vector"
_OWN = f"{__name__}.SentenceTransformer"
_HAS_HOOK = hasattr(InputModule, "on_model_ready")  # since release 6.0
_QUANTISED = ("int8", "uint8", "binary", "ubinary")
# Names that transformers has for attention, and ours.
_ATTENTION = {f"flash_attention_{n}": f"flash_attn_{n}" for n in (2, 3, 4)}
_MODEL_KWARGS = ("dtype", "attn_implementation", "deterministic", "share_prompts", "cuda_graphs")


class Causal2VecModule(InputModule):  # type: ignore[misc]
    """A Causal2Vec checkpoint as the one module of a ``SentenceTransformer``.

    The engine is opened where the model is moved to, and in the dtype it is cast to; it is opened
    anew after another move. Copies, and processes that the model is sent to, open their own.

    Args:
        description: what the checkpoint says of itself.
        options: how it is opened; the device in them is not read.

    Attributes:
        placement: an empty parameter, which says where the engine computes and in which dtype.
    """

    forward_kwargs = {_OPTIONS}  # noqa: RUF012 - as the base class has it

    def __init__(
        self, description: CheckpointDescription, options: PipelineOptions | None = None
    ) -> None:
        super().__init__()
        self._description = description
        self._options = PipelineOptions() if options is None else options
        self._engine: Causal2Vec | None = None
        self._tokenizer: Any = None
        self._lock = Lock()
        self._place(torch.device("cpu"), torch.float32)
        self.eval()  # until someone trains it

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> Causal2VecModule:
        """Find a checkpoint, as sentence-transformers asks for it; the engine is opened later.

        Args:
            model_name_or_path: a checkpoint's directory or Hub name.
            subfolder: of it.
            token: of the Hub, and so are the next three.
            cache_folder: where its files are kept.
            revision: of the repository.
            local_files_only: whether nothing is fetched.
            model_kwargs: ``dtype`` (or ``torch_dtype``), ``attn_implementation``,
                ``deterministic``, ``share_prompts`` and ``cuda_graphs``, as
                ``Causal2Vec.from_pretrained`` means them.
            processor_kwargs: none.
            config_kwargs: none.
            backend: ``torch``.
            kwargs: not used.

        Raises:
            InputError: options that the engine does not have.
            ConfigError: the checkpoint's ``config.json`` is missing or wrong.
            CheckpointError: there is no such checkpoint, or it is damaged.
        """
        for name, given in (("processor", processor_kwargs), ("config", config_kwargs)):
            if given:
                raise InputError(
                    f"{name}_kwargs has {next(iter(given))!r}: the engine reads tokenizers and "
                    "config as the checkpoint has them; max_seq_length can be set on the model"
                )
        if backend != "torch":
            raise InputError(f"backend is {backend!r}, expected 'torch', which the engine takes")
        options = _pipeline_options(model_kwargs or {})
        directory = cls.load_dir_path(
            model_name_or_path, subfolder, token, cache_folder, revision, local_files_only
        )
        if directory is None:
            raise CheckpointError(f"{model_name_or_path}: no such directory or repository")
        return cls(CheckpointDescription.read(directory), options)

    def on_model_ready(self, model: Any) -> None:
        """Give the model the engine's ``encode``, and open the engine, where it has its device now.

        Raises:
            InputError: an impossible ``truncate_dim``.
            CheckpointError: the checkpoint's files do not fit together.
            BackendError: a device, dtype or backend that can not be used here.
        """
        if type(model) is Base and model[0] is self:
            model.__class__ = SentenceTransformer
        elif not isinstance(model, SentenceTransformer):
            warnings.warn(
                f"{type(model).__name__} has an encode of its own, so {_LIMITS}; "
                f"derive it from {_OWN}",
                UserWarning,
                stacklevel=2,
            )
        self.engine.output_dimension(getattr(model, "truncate_dim", None))

    @property
    def engine(self) -> Causal2Vec:
        """The engine, opened where the model is."""
        with self._lock:
            if self._engine is None:
                # Weights that are made in inference mode could not be used outside of it.
                with torch.inference_mode(False):
                    self._engine = self._open()
                    self._place(self._engine.device, self._engine.dtype)
            return self._engine

    def _open(self) -> Causal2Vec:
        description, placement = self._description, self.placement
        load = replace(self._options.load, device=str(placement.device))
        pipeline = open_described(description, replace(self._options, load=load))
        fingerprint = checkpoint_fingerprint(description.directory, description.config)
        name, placed = str(description.directory), pipeline.checkpoint.placement
        return Causal2Vec(description, name, pipeline, placed, fingerprint)

    def _place(self, device: torch.device, dtype: torch.dtype) -> None:
        nothing = torch.empty(0, device=device, dtype=dtype)
        self.placement = torch.nn.Parameter(nothing, requires_grad=False)

    def _apply(self, *args: Any, **kwargs: Any) -> Causal2VecModule:
        """Note that the model was moved or cast: ``to``, ``half`` and the like end here."""
        before = self.placement
        device, dtype = before.device, before.dtype
        super()._apply(*args, **kwargs)
        after = self.placement
        if after.dtype != dtype:
            load = replace(self._options.load, dtype=str(after.dtype).removeprefix("torch."))
            self._options = replace(self._options, load=load)
        if (after.device, after.dtype) != (device, dtype):
            self._forget()
        return self

    def _forget(self) -> None:
        with self._lock:
            self._engine = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_lock": None, "_tokenizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_lock": Lock()})

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> Features:
        """Hold texts and prompt together: the engine tokenises ahead of what it computes.

        Args:
            inputs: the texts.
            prompt: the prompt of all of them.
            kwargs: what other modules take (``task``); not used.
        """
        return {"texts": list(inputs), "prompt": prompt or ""}

    def forward(
        self, features: Features, engine_options: Mapping[str, Any] | None = None, **_: Any
    ) -> Features:
        """Embed a batch.

        Args:
            features: of ``preprocess``.
            engine_options: of ``Causal2Vec.encode``; ``on_device`` says whether the embeddings are
                wanted where the model is, else they are on the CPU.

        Returns:
            ``sentence_embedding`` ``[texts, columns]``.

        Raises:
            TextError: a text that can not be embedded.
            BackendError: in training.
        """
        if self.training and torch.is_grad_enabled():
            raise BackendError("the engine computes no gradients: train with c2v train")
        if engine_options is None and not _HAS_HOOK:
            warnings.warn(
                "sentence-transformers before 6.0 does not tell a module which model it is in, so "
                f"{_LIMITS}; open the checkpoint by {_OWN}",
                UserWarning,
                stacklevel=2,
            )
        if "texts" not in features:
            found = ", ".join(features) or "nothing"
            raise InputError(f"features hold {found}, expected what preprocess gives")
        options = {"on_device": True, **(engine_options or {})}
        on_device = options.pop("on_device")
        texts = features["texts"]
        try:
            embeddings = self.engine.encode(
                texts,
                prompt=features["prompt"],
                convert_to="tensor",
                show_progress_bar=False,
                **options,
            )
        except TextError as error:
            error.text = texts[error.row]  # type: ignore[attr-defined]
            raise
        if on_device:
            embeddings = embeddings.to(self.placement.device)
        return {"sentence_embedding": embeddings}

    def get_embedding_dimension(self) -> int:
        """Width of a whole embedding."""
        description = self._description
        return description.config.segments * int(description.decoder_shape.hidden_size)

    @property
    def max_seq_length(self) -> int:
        """Most rows of the decoder's sequence: the checkpoint's ``max_length``."""
        return self._description.config.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if value != self.max_seq_length:
            config = replace(self._description.config, max_length=value)
            self._description = replace(self._description, config=config)
            self._forget()

    @property
    def tokenizer(self) -> Any:
        """The decoder's, of transformers; it adds neither the template nor a prompt."""
        if self._tokenizer is None:
            from c2v_engine.runtime.tokenization import load_fast_tokenizer

            self._tokenizer = load_fast_tokenizer(self._description.decoder_folder)
        return self._tokenizer

    def get_config_dict(self) -> dict[str, Any]:
        """What ``print`` shows of it."""
        return {
            "directory": str(self._description.directory),
            "dimension": self.get_embedding_dimension(),
            "max_seq_length": self.max_seq_length,
        }

    def save(
        self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Write the checkpoint, which the engine and sentence-transformers open alike.

        Prompts that the model was given, and ``max_seq_length``, go into its ``config.json``. The
        weights are those that were loaded, in their stored dtype. A checkpoint that is there
        already is replaced.

        Raises:
            InputError: weights were asked for that are not safetensors.
            ConfigError: a prompt is not text.
            CheckpointError: the weights were deleted after loading.
        """
        if not safe_serialization:
            raise InputError("safe_serialization is False, the engine writes safetensors only")
        source, target = self._description.directory, Path(output_path)
        config = config_with_settings(self._description.config, read_settings(target))
        replace_checkpoint(source, config, target)
        ranges = Ranges.load(source)
        if ranges is not None:
            ranges.save(target)
        else:
            (target / RANGES_NAME).unlink(missing_ok=True)


class SentenceTransformer(Base):  # type: ignore[misc]
    """A ``SentenceTransformer`` whose one module is a ``Causal2VecModule``.

    It has the name of its base class, which sentence-transformers writes into what it saves.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not _HAS_HOOK and isinstance(self[0], Causal2VecModule):
            self[0].on_model_ready(self)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Embed texts: see ``SentenceTransformer.encode``.

        The options mean what they mean in ``Causal2Vec.encode``, of which these are the same
        vectors. ``batch_size`` changes nothing, for batches are filled by tokens. ``int8`` and
        ``uint8`` are quantised by the checkpoint's ranges, where it has some, else, as
        sentence-transformers does it, by those of the texts given. Where other modules follow,
        sentence-transformers cuts, normalises and quantises what the last one gives.

        Raises:
            TextError: a text that can not be embedded, named by its row.
            InputError: options that can not be.
        """
        call = _SIGNATURE.bind_partial(self, *args, **kwargs)
        call.apply_defaults()
        options, module = call.arguments, self[0]
        extra = options["kwargs"]
        if _OPTIONS in extra or not isinstance(module, Causal2VecModule):
            return super().encode(*args, **kwargs)
        if options["output_value"] == "token_embeddings":
            raise InputError("output_value is 'token_embeddings', which the engine does not give")
        asked = {"on_device": options["convert_to_tensor"] or not options["convert_to_numpy"]}
        if len(self) == 1:  # else modules that follow read whole vectors
            asked |= self._finished_by_engine(options)
        options["batch_size"] = max(options["batch_size"], _WINDOW_TEXTS)
        options["kwargs"] = {**extra, _OPTIONS: asked}
        try:
            return super().encode(*call.args[1:], **call.kwargs)
        except TextError as error:
            raise _in_place(error, options.get("inputs", extra.get("sentences"))) from None

    def _finished_by_engine(self, options: dict[str, Any]) -> dict[str, Any]:
        """The engine's options in place of those of ``encode``, which are set to do nothing more.

        Args:
            options: of ``encode``, all of them; changed.
        """
        truncate_dim, precision = options["truncate_dim"], options["precision"]
        truncate_dim = self.truncate_dim if truncate_dim is None else truncate_dim
        asked = {
            "truncate_dim": truncate_dim,
            "normalize_embeddings": True if options["normalize_embeddings"] else None,
        }
        binary = precision in ("binary", "ubinary")
        if binary or (precision in _QUANTISED and self[0].engine.ranges is not None):
            asked["precision"], options["precision"] = precision, "float32"
        options["truncate_dim"], options["normalize_embeddings"] = truncate_dim, False
        return asked


_SIGNATURE = inspect.signature(Base.encode)


def _in_place(error: TextError, inputs: Any) -> TextError:
    """The error of a text of a sorted batch, by its row in what was given."""
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    text = getattr(error, "text", None)
    row = next((i for i, one in enumerate(texts) if one is text or one == text), error.row)
    return TextError(row, error.reason)


def _pipeline_options(model_kwargs: Mapping[str, Any]) -> PipelineOptions:
    """How the checkpoint is opened.

    Raises:
        InputError: something that the engine does not have.
    """
    given = dict(model_kwargs)
    if "torch_dtype" in given:
        given.setdefault("dtype", given.pop("torch_dtype"))
    if "device_map" in given:
        raise InputError("model_kwargs has 'device_map': pass device= to SentenceTransformer")
    unknown = sorted(set(given) - set(_MODEL_KWARGS))
    if unknown:
        raise InputError(
            f"model_kwargs has {unknown[0]!r}, expected some of {', '.join(_MODEL_KWARGS)}"
        )
    dtype, attention = given.get("dtype"), given.get("attn_implementation")
    load = LoadOptions(
        dtype="auto" if dtype is None else str(dtype).removeprefix("torch."),
        attention="auto" if attention is None else _ATTENTION.get(attention, attention),
        deterministic=bool(given.get("deterministic", False)),
    )
    return PipelineOptions(
        load, bool(given.get("share_prompts", True)), bool(given.get("cuda_graphs", True))
    )
