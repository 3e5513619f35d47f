"""The Python of docs/ray.md calls what there is, with what it takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ray.md"


class Dataset:
    """Notes how it is used."""

    def __init__(self):
        self.calls = []

    def map_batches(self, *arguments, **options):
        self.calls.append(("map_batches", arguments, options))
        return self

    def write_parquet(self, path):
        self.calls.append(("write_parquet", path))


@pytest.fixture
def dataset(monkeypatch):
    ray_data = pytest.importorskip("ray.data")
    from c2v_engine.integrations import ray as integration

    dataset = Dataset()
    taken = inspect.signature(integration.encode_dataset)

    def encode_dataset(*arguments, **options):
        bound = taken.bind(*arguments, **options)
        known = inspect.signature(integration.Embedder).parameters
        assert set(bound.arguments.get("options", ())) <= set(known)
        return dataset.map_batches(*arguments, **options)

    monkeypatch.setattr(integration, "encode_dataset", encode_dataset)
    monkeypatch.setattr(ray_data, "read_parquet", lambda path: dataset)
    return dataset


def snippets():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_a_dataset_is_encoded_and_written(dataset):
    exec(compile(snippets()[0], str(PAGE), "exec"), {})
    assert [call[0] for call in dataset.calls] == ["map_batches", "write_parquet"]


def test_the_class_takes_what_the_page_gives_it(dataset):
    ray_data = pytest.importorskip("ray.data")
    from c2v_engine.integrations.ray import Embedder

    exec(compile(snippets()[1], str(PAGE), "exec"), {})
    [(_, (kind,), options)] = dataset.calls
    assert kind is Embedder
    inspect.signature(Embedder).bind(**options.pop("fn_constructor_kwargs"))
    inspect.signature(ray_data.Dataset.map_batches).bind(None, kind, **options)
