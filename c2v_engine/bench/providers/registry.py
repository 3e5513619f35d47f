"""Who can be asked for, by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.compiled import open_compiled
from c2v_engine.bench.providers.engine import DeviceOnly, Engine, open_engine
from c2v_engine.bench.providers.forms import no_stock_form, refuse_other_dtypes
from c2v_engine.bench.providers.infinity import open_infinity
from c2v_engine.bench.providers.llama_cpp.provider import open_llama_cpp
from c2v_engine.bench.providers.remote import open_tei
from c2v_engine.bench.providers.sentence_transformers import open_sentence_transformers
from c2v_engine.bench.providers.stock import Packed, Padded, Reference, packed_kernel
from c2v_engine.bench.providers.vllm import open_vllm
from c2v_engine.runtime.opening import PipelineOptions
from c2v_engine.runtime.options import default_batch_tokens

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["OPENERS", "Opener", "default_providers"]

Opener = Callable[["Session", Spec], Provider]
"""Opens a provider of a session's model; raises ``UnusableError`` where it can not be had here."""


def open_whole_engine(session: Session, spec: Spec) -> Provider:
    """From texts to vectors, as a user has it."""
    options = PipelineOptions(session.load_options(spec), spec.share_prompts, spec.cuda_graphs)
    return Engine(open_engine(session.checkpoint(spec), session.tokenizer, options))


def open_device_only(session: Session, spec: Spec) -> Provider:
    """The engine's model alone."""
    return DeviceOnly(session.checkpoint(spec))


def open_padded(session: Session, spec: Spec) -> Provider:
    """Stock transformers, padded; the plain reference for a model that has no other form."""
    refuse_other_dtypes(spec)
    why_not = no_stock_form(session.source.description.config)
    if why_not:
        try:
            return Reference(session.reference(getattr(torch, spec.dtype)))
        except UnusableError as error:
            raise UnusableError(f"{why_not}, and {error}") from None
    return Padded(session.stock_model(spec.dtype))


def open_packed(session: Session, spec: Spec) -> Provider:
    """Stock transformers, packed, with an attention kernel for that."""
    refuse_other_dtypes(spec)
    name, attend = packed_kernel(session.device)
    tokens = default_batch_tokens(session.checkpoint(Spec("engine", spec.dtype)).model)
    packed = Packed(session.stock_model(spec.dtype), attend, tokens)
    packed.note = f"{name}, batches of {tokens} rows"
    return packed


OPENERS: dict[str, Opener] = {
    "engine": open_whole_engine,
    "device": open_device_only,
    "padded": open_padded,
    "packed": open_packed,
    "compiled": open_compiled,
    "sentence-transformers": open_sentence_transformers,
    "llama.cpp": open_llama_cpp,
    "vllm": open_vllm,
    "infinity": open_infinity,
    "tei": open_tei,
}
"""By the kind of a ``Spec``."""


def default_providers(device: torch.device) -> list[str]:
    """Who takes part beside the engine where nobody is asked for: what needs no long preparation.

    Args:
        device: where.
    """
    found = ["device", "padded"]
    if device.type == "cuda":
        found.append("packed")
    if find_spec("sentence_transformers") is not None:
        found.append("sentence-transformers")
    return found
