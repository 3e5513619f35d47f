"""The engine on Ray Data, in two actors on this machine: the same rows as one process gives."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2v_engine import Causal2Vec
from c2v_engine.errors import InputError, MissingPackageError
from c2v_engine.integrations import ray as module
from c2v_engine.integrations.ray import Embedder, encode_dataset

ROWS = 400
TEXTS = [f"document number {row} " + "of many words " * (row % 7) for row in range(ROWS)]


@pytest.fixture(scope="module")
def engine():
    return Causal2Vec.from_pretrained(device="cpu", dtype="float32", deterministic=True)


@pytest.fixture(scope="module")
def embedder():
    return Embedder(device="cpu", dtype="float32", deterministic=True)


@pytest.fixture(scope="module")
def table():
    return pa.table({"id": range(ROWS), "text": TEXTS})


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from ray_cluster import local_ray

    with local_ray(cpus=4):
        yield ray


def with_text(table, row, text):
    texts = [*TEXTS]
    texts[row] = text
    return table.set_column(1, "text", pa.array(texts, pa.string()))


def test_two_actors_one_of_them_killed_give_the_bits_of_one_process(
    ray, table, engine, tmp_path, monkeypatch
):
    died = tmp_path / "died"

    class Mortal(Embedder):
        """The first of them to reach a batch of the second half is killed in it."""

        def __call__(self, batch):
            if batch["id"].to_pylist()[0] >= ROWS // 2:
                with contextlib.suppress(FileExistsError):
                    died.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    monkeypatch.setattr(module, "Embedder", Mortal)
    monkeypatch.setattr(
        ray.data.DataContext.get_current().execution_options, "preserve_order", True
    )
    dataset = ray.data.from_arrow([table.slice(first, 50) for first in range(0, ROWS, 50)])
    options = {"device": "cpu", "dtype": "float32", "deterministic": True}
    encoded = encode_dataset(dataset, concurrency=2, batch_size=50, **options)
    found = pa.concat_tables(encoded.iter_batches(batch_format="pyarrow", batch_size=None))
    assert died.exists()
    assert found["id"].to_pylist() == list(range(ROWS))
    np.testing.assert_array_equal(np.stack(found["embedding"].to_numpy()), engine.encode(TEXTS))


def test_options_reach_the_engine_and_files_hold_plain_lists(ray, table, engine, tmp_path):
    options = {"prompt": "Find: ", "precision": "float16", "truncate_dim": 64}
    found = encode_dataset(
        ray.data.from_arrow(with_text(table, 11, None)),
        column="text",
        output_column="vector",
        on_error="null",
        device="cpu",
        dtype="float32",
        deterministic=True,
        batch_size=64,
        **options,
    )
    found.write_parquet(str(tmp_path))
    read = pq.read_table(str(tmp_path)).sort_by("id")
    assert read["id"].to_pylist() == list(range(ROWS))
    assert read.schema.field("vector").type.value_type == pa.float16()
    assert read["vector"].is_null().to_numpy().nonzero()[0].tolist() == [11]
    texts = TEXTS[:11] + TEXTS[12:]
    vectors = np.array(read["vector"].drop_null().to_pylist(), np.float16)
    np.testing.assert_array_equal(vectors, engine.encode(texts, **options))


@pytest.mark.parametrize(("given", "stated", "expected"), [(None, "2", "2"), (3, "2", "3")])
def test_an_actor_s_threads_are_its_cpus_or_as_given(monkeypatch, given, stated, expected):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", stated)  # which Ray does
    monkeypatch.setenv("RAYON_NUM_THREADS", "")
    try:
        module.limit_threads(given)
        assert torch.get_num_threads() == int(expected)
        assert os.environ["RAYON_NUM_THREADS"] == expected
    finally:
        torch.set_num_threads(before)


def test_a_table_s_embeddings_are_fixed_size_lists(embedder, engine, table):
    found = embedder(table)
    assert found.column_names == ["id", "text", "embedding"]
    assert found.schema.field("embedding").type == pa.list_(pa.float32(), engine.dimension)
    np.testing.assert_array_equal(np.stack(found["embedding"].to_numpy()), engine.encode(TEXTS))
    assert embedder(table.slice(0, 0)).num_rows == 0


def test_arrays_embeddings_are_an_array(embedder, engine):
    found = embedder({"id": np.arange(3), "text": np.array(TEXTS[:3], object)})
    np.testing.assert_array_equal(found["embedding"], engine.encode(TEXTS[:3]))
    assert found["id"].tolist() == [0, 1, 2]
    fixed = embedder({"text": np.array(TEXTS[:3])})  # of NumPy's own string type
    np.testing.assert_array_equal(fixed["embedding"], found["embedding"])


@pytest.mark.parametrize("kind", ["table", "arrays"])
@pytest.mark.parametrize("on_error", ["skip", "null"])
def test_rows_without_a_text_are_left_out_or_null(embedder, engine, table, on_error, kind):
    embedder._on_error = on_error
    try:
        batch = with_text(table, 5, None).slice(0, 8)
        if kind == "arrays":
            batch = {name: batch[name].to_numpy(zero_copy_only=False) for name in ("id", "text")}
        found = embedder(batch)
    finally:
        embedder._on_error = "fail"
    ids = np.array(found["id"]).tolist()
    expected = engine.encode([TEXTS[row] for row in range(8) if row != 5])
    if on_error == "skip":
        assert ids == [0, 1, 2, 3, 4, 6, 7]
        np.testing.assert_array_equal(np.stack([*np.asarray(found["embedding"])]), expected)
        return
    assert ids == list(range(8))
    if kind == "table":
        assert found["embedding"].to_pylist()[5] is None
        found = {"embedding": [row for row in found["embedding"].to_pylist() if row is not None]}
        np.testing.assert_array_equal(np.array(found["embedding"], np.float32), expected)
    else:
        assert np.isnan(found["embedding"][5]).all()
        np.testing.assert_array_equal(np.delete(found["embedding"], 5, axis=0), expected)


def test_a_batch_of_nulls_alone_keeps_its_type(embedder, table):
    embedder._on_error = "skip"
    try:
        found = embedder(pa.table({"text": pa.array([None, None], pa.string())}))
    finally:
        embedder._on_error = "fail"
    assert found.num_rows == 0
    assert found.schema.field("embedding").type == embedder(table).schema.field("embedding").type


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pa.table({"body": ["a"]}), "there is no column 'text', only body"),
        (pa.table({"text": ["a"], "embedding": [1]}), "there is a column 'embedding' already"),
        (pa.table({"text": [1, 2]}), "column 'text', row 0 of the batch: is int, expected a str"),
        ({"text": np.array(["a", None])}, "row 1 of the batch: is null, expected a string"),
        ({"text": np.array(["a", np.nan], object)}, "row 1 of the batch: is null"),
        ({"text": np.array(["a", "\ud800"])}, "row 1 of the batch: .*Unicode"),
        (["a"], "the batch is list: give map_batches batch_format='pyarrow' or 'numpy'"),
    ],
)
def test_a_batch_that_can_not_be_embedded_is_named(embedder, batch, message):
    with pytest.raises(InputError, match=message):
        embedder(batch)


def test_an_array_of_integers_has_no_nulls():
    embedder = Embedder(device="cpu", precision="ubinary", on_error="null")
    assert embedder({"text": np.array(["a", "b"])})["embedding"].dtype == np.uint8
    with pytest.raises(InputError, match="row 1 of the batch: has no embedding, and an array of"):
        embedder({"text": np.array(["a", None], object)})
    found = embedder(pa.table({"text": pa.array(["a", None])}))
    assert found["embedding"].is_null().to_pylist() == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore', expected one of: fail, skip, null"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16'"),
        ({"prompt_nam": "query"}, "there is no option 'prompt_nam', only attention, "),
    ],
)
def test_options_that_can_not_be_are_refused_before_any_actor_starts(ray, options, message):
    with pytest.raises(InputError, match=message):
        encode_dataset(None, **options)


@pytest.mark.parametrize(
    ("cluster", "device", "asked", "expected"),
    [
        ({"CPU": 8.0}, "auto", None, (0, 1)),
        ({"CPU": 64.0, "GPU": 8.0}, "auto", None, (1, 4)),
        ({"CPU": 64.0, "GPU": 8.0}, "cpu", None, (0, 1)),
        ({"CPU": 64.0, "GPU": 8.0}, "auto", 0.25, (0.25, 1)),
        ({"CPU": 2.0, "GPU": 2.0}, "auto", None, (1, 1)),
        ({"CPU": 8.0}, "auto", 1, (1, 1)),
    ],
)
def test_an_actor_takes_a_gpu_and_its_share_of_the_cpus(cluster, device, asked, expected):
    assert module._resources(cluster, device, asked) == expected


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"ray.* pip install 'c2v-engine\[ray\]'"):
        encode_dataset(None)
