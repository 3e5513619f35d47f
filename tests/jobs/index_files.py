"""Indexes as ``c2v encode`` writes them, from vectors that a test chooses."""

import numpy as np
import pyarrow as pa

from c2v_engine.jobs.output import AtomicFile
from c2v_engine.jobs.writers import check_output, id_batch, open_writer, pack_ranges

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


def gaussian(rows, dimension, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)


def quantize(vectors, precision, ranges=None):
    """[rows, columns] as the pooling op's docstring defines each precision."""
    if precision in ("int8", "uint8"):
        step = (ranges[1] - ranges[0]) / 255
        levels = np.clip(np.floor((vectors - ranges[0]) / np.where(step == 0, 1, step)), 0, 255)
        return (levels - (128 if precision == "int8" else 0)).astype(precision)
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    return vectors.astype(precision)


def ranges_of(vectors):
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def write_index(path, rows, precision="float32", ids=None, ranges=None, **about):
    """Write stored rows [rows, columns]; Parquet says ``about`` and the ranges."""
    check_output(path, ids=ids is not None, precision=precision)
    stored = {"model": "fake", "fingerprint": "f", "precision": precision, "truncate_dim": None}
    stored |= {"ranges": None if ranges is None else pack_ranges(ranges), **about}
    kind = pa.string() if ids and isinstance(ids[0], str) else pa.int64()
    target = AtomicFile(path, overwrite=True)
    writer = open_writer(target, rows.shape[1], precision, kind, stored)
    if len(rows):
        writer.write(id_batch(list(range(len(rows))) if ids is None else ids, kind), rows)
    writer.finish()
    target.commit()
    return path
