"""C2V Engine: inference for Causal2Vec text embeddings.

``from c2v_engine import Causal2Vec`` is the whole public face; importing the package itself loads
neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from c2v_engine._version import __version__

if TYPE_CHECKING:
    from c2v_engine.engine import Causal2Vec

__all__ = ["Causal2Vec", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Causal2Vec":
        from c2v_engine.engine import Causal2Vec

        return Causal2Vec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
