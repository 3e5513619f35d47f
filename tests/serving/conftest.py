"""The shipped model behind a real server, opened once for all tests that ask it."""

from __future__ import annotations

import pytest
from running import Served, running


@pytest.fixture(scope="session")
def engine():
    """What every answer must equal. Deterministic, so that it does to the bit in any batch."""
    from c2v_engine import Causal2Vec

    return Causal2Vec.from_pretrained(deterministic=True)


@pytest.fixture(scope="session")
def served():
    """The default model's server; its engine is its own."""
    from c2v_engine import Causal2Vec
    from c2v_engine.serving.http.app import create_app
    from c2v_engine.serving.http.options import HttpOptions
    from c2v_engine.serving.service import EmbeddingService
    from c2v_engine.serving.watch.metrics import Metrics
    from c2v_engine.serving.watch.status import watch_router

    service = EmbeddingService(Causal2Vec.from_pretrained(deterministic=True))
    service.warm_up()
    metrics = Metrics(service)
    service.add_observer(metrics)
    # A body that stalls is given up soon, for the tests that have one.
    options = HttpOptions(("default", "text-embedding-3-small"), body_seconds=1.0)
    watching = watch_router(service, metrics, model="default", needs_key=False)
    app = create_app(service, options, listeners=[metrics], routers=[watching])
    with running(app) as url:
        yield Served(url, service)
    service.close()
