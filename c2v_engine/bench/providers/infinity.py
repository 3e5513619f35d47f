"""infinity as a provider: in this process where it is installed, else by the address of a server.

In process it has been run nowhere yet: it is written from infinity_emb's sources alone. By an
address it is tested against our own server, whose API is OpenAI's too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from c2v_engine.bench.providers.base import Provider, Spec, UnusableError
from c2v_engine.bench.providers.forms import refuse_other_dtypes
from c2v_engine.bench.providers.libraries import library
from c2v_engine.bench.providers.remote import open_openai
from c2v_engine.bench.providers.stock_folder import write_stock_folder
from c2v_engine.bench.workloads import Workload

if TYPE_CHECKING:
    from c2v_engine.bench.session import Session

__all__ = ["Infinity", "open_infinity"]

BATCH_SIZE = 64


def open_infinity(session: Session, spec: Spec) -> Provider:
    """A server, where an address is given; else the library over stock modules."""
    if spec.url:
        return open_openai(spec)
    refuse_other_dtypes(spec)
    try:
        engines = library("infinity_emb.sync_engine")
    except UnusableError as error:
        raise UnusableError(f"{error}, and no address of a server is given") from None
    arguments = library("infinity_emb").EngineArgs
    folder = tempfile.TemporaryDirectory(prefix="c2v-bench-")
    try:
        write_stock_folder(session.source, Path(folder.name))
        array = engines.SyncEngineArray.from_args(
            [
                arguments(
                    model_name_or_path=folder.name,
                    served_model_name="benchmark",
                    engine="torch",
                    device=session.device.type,
                    dtype=spec.dtype,
                    batch_size=BATCH_SIZE,
                    model_warmup=False,
                    bettertransformer=False,
                    trust_remote_code=False,
                )
            ]
        )
    except BaseException:
        folder.cleanup()
        raise
    return Infinity(array, folder)


class Infinity(Provider):
    """infinity's engine array, which batches by itself.

    Args:
        array: a ``SyncEngineArray`` of one model, named ``benchmark``.
        folder: of the model; removed with the provider.
    """

    note = f"in this process, batches of {BATCH_SIZE}"

    def __init__(self, array: Any, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._array = array
        self._folder = folder

    def prepare(self, workload: Workload) -> Callable[[], Any]:
        """See the base class."""
        return partial(self.embed, workload)

    def embed(self, workload: Workload) -> torch.Tensor:
        """See the base class."""
        parts = []
        for texts in workload.calls():
            asked = [workload.prompt + text for text in texts]
            vectors, _ = self._array.embed(model="benchmark", sentences=asked).result()
            parts.append(torch.from_numpy(np.stack(vectors).astype(np.float32)))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    def close(self) -> None:
        """See the base class."""
        try:
            self._array.stop()
        finally:
            self._folder.cleanup()
