"""Embeddings as the bytes of an answer."""

from __future__ import annotations

from binascii import b2a_base64
from typing import Literal

import numpy as np
import orjson

Encoding = Literal["float", "base64"]
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def openai_json(embeddings: np.ndarray, encoding: Encoding, model: str, tokens: int) -> bytes:
    """OpenAI's list of embeddings.

    Numbers are written so that they read back as the same float32; base64 holds little-endian
    float32.

    Args:
        embeddings: float32 ``[texts, columns]``.
        encoding: of each.
        model: as it was asked for.
        tokens: of the request.
    """
    parts = [b'{"object":"list","data":[']
    for index, row in enumerate(embeddings.astype("<f4", order="C", copy=False)):
        value = b'"%s"' % b2a_base64(row, newline=False) if encoding == "base64" else _floats(row)
        comma = b"," if index else b""
        parts.append(b'%s{"object":"embedding","index":%d,"embedding":%s}' % (comma, index, value))
    parts.append(
        b'],"model":%s,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
        % (orjson.dumps(model), tokens, tokens)
    )
    return b"".join(parts)


def tei_json(embeddings: np.ndarray) -> bytes:
    """A list of lists, of float32 ``[texts, columns]``."""
    # Row by row, so that another thread may run in between.
    return b"[%s]" % b",".join(map(_floats, np.ascontiguousarray(embeddings)))


def raw_bytes(embeddings: np.ndarray) -> bytes:
    """``[texts, columns]`` row by row, little-endian."""
    little = embeddings.dtype.newbyteorder("<")
    return embeddings.astype(little, order="C", copy=False).tobytes()


def _floats(row: np.ndarray) -> bytes:
    return orjson.dumps(row, option=_NUMPY)
