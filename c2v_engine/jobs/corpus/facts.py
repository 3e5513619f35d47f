"""What a job needs to know of an engine, wherever that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from c2v_engine.jobs.encode import EncodeOptions, Encoder


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
        dimension = engine.output_dimension(options.truncate_dim, options.precision)
        return cls(engine.info(), dimension, engine.ranges)
