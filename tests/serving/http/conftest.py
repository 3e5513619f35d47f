"""An app on a fake service, asked in this process."""

from __future__ import annotations

import pytest
from fake_service import FakeService
from starlette.testclient import TestClient

from c2v_engine.serving.http.app import create_app
from c2v_engine.serving.http.options import HttpOptions


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def records():
    return []


@pytest.fixture
def client_of(service, records):
    """``client_of(api_keys=...)`` gives a client of an app with such options."""

    class Listener:
        def request(self, record):
            records.append(record)

    def build(**options):
        options.setdefault("model_names", ("fake", "text-embedding-3-small"))
        return TestClient(create_app(service, HttpOptions(**options), listeners=[Listener()]))

    return build


@pytest.fixture
def client(client_of):
    return client_of()
