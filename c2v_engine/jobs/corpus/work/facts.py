"""What a job needs to know of an engine, wherever that runs."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.encode import EncodeOptions, Encoder

# Of what an engine says of itself.
_DECIDING = ("fingerprint", "dtype", "normalize")


@dataclass(frozen=True)
class EngineFacts:
    """What a job needs to know of an engine, in a form that travels between processes.

    Attributes:
        info: as ``Causal2Vec.info`` gives it.
        dimension: columns of what it will write.
        ranges: float32 [2, dimensions] for int8 and uint8, where there are any.
    """

    info: dict[str, Any]
    dimension: int
    ranges: NDArray[np.float32] | None

    @classmethod
    def of(cls, engine: Encoder, options: EncodeOptions) -> EngineFacts:
        """Ask an engine.

        Raises:
            InputError: options that can not be.
        """
        # Whatever the engine refuses, it refuses before a job has begun with it.
        for _ in engine.encode_stream(
            iter(()),
            prompt_name=options.prompt_name,
            prompt=options.prompt,
            batch_tokens=options.batch_tokens,
            truncate_dim=options.truncate_dim,
            precision=options.precision,
        ):
            pass
        dimension = engine.output_dimension(options.truncate_dim, options.precision)
        return cls(engine.info(), dimension, engine.ranges)

    def ranges_digest(self, precision: str) -> str | None:
        """What stands for the ranges, where the precision needs them and there are any."""
        if precision not in ("int8", "uint8") or self.ranges is None:
            return None
        return sha256(self.ranges.tobytes()).hexdigest()

    def difference(self, other: EngineFacts) -> str | None:
        """Say by what another engine would give other embeddings; None for nothing."""
        for name in _DECIDING:
            if self.info.get(name) != other.info.get(name):
                return f"{name} {other.info.get(name)!r}, not {self.info.get(name)!r}"
        if self.dimension != other.dimension:
            return f"{other.dimension} dimensions, not {self.dimension}"
        if self.ranges_digest("int8") != other.ranges_digest("int8"):
            return "other ranges for int8 and uint8"
        return None
