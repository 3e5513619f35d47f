"""Embeddings on disk: found again by whoever has the same model, and by nobody else."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from fake_engine import DIMENSION, FakeEngine, vector, vectors
from memory_units import MemoryShards, make_units, read_blocks

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs.corpus.cache import VectorCache, cache_namespace
from c2v_engine.jobs.corpus.work.facts import EngineFacts
from c2v_engine.jobs.corpus.work.runner import RunnerOptions, UnitRunner
from c2v_engine.jobs.encode import EncodeOptions

ABOUT = {"fingerprint": "00ff", "prompt": ""}
TEXTS = [f"text number {row}" for row in range(500)]

WRITER = """
import sys
sys.path.insert(0, {tests!r})
from fake_engine import DIMENSION, vectors
from c2v_engine.jobs.corpus.cache import VectorCache
cache = VectorCache(sys.argv[1], {about!r}, DIMENSION, "float32")
first, last = int(sys.argv[2]), int(sys.argv[3])
print("open", flush=True)
for start in range(first, last, 20):
    texts = [f"text number {{row}}" for row in range(start, min(last, start + 20))]
    cache.put_many(texts, vectors(texts))
    print(start, flush=True)
"""


def open_cache(path, about=ABOUT, dtype="float32"):
    return VectorCache(path, about, DIMENSION, dtype)


def start_writer(path, first, last):
    script = WRITER.format(tests=str(Path(__file__).parents[1]), about=ABOUT)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(first), str(last)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.sqlite"


def found(cache, texts=TEXTS):
    """The texts that a cache knows; what it says of them is right."""
    known = []
    for text, kept in zip(texts, cache.get_many(texts), strict=True):
        if kept is not None:
            np.testing.assert_array_equal(kept, vector(text).astype(kept.dtype))
            known.append(text)
    return known


def facts(**changed):
    info = {
        "model": "m",
        "fingerprint": "00ff",
        "prompts": {"query": "Q: ", "document": ""},
        "default prompt": None,
        "normalize": True,
        "device": "cuda:0",
        "dtype": "bfloat16",
        **changed,
    }
    return EngineFacts(info, DIMENSION, np.zeros((2, DIMENSION), np.float32))


def test_what_was_put_in_comes_out_after_reopening(path):
    cache = open_cache(path)
    assert found(cache) == []
    cache.put_many(TEXTS[:300], vectors(TEXTS[:300]))
    assert found(cache) == TEXTS[:300]
    cache.close()
    assert found(open_cache(path)) == TEXTS[:300]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_a_vector_keeps_its_type_and_bits(path, dtype):
    cache = open_cache(path, dtype=dtype)
    given = vectors(TEXTS, np.uint8).astype(dtype)
    cache.put_many(TEXTS, given)
    assert cache.get_many(TEXTS)[0].dtype == dtype
    np.testing.assert_array_equal(np.stack(cache.get_many(TEXTS)), given)


def test_texts_of_every_kind_are_told_apart(path):
    texts = ["", " ", "a", "A", "é", "é", "\0", "a\0", "😀", "x" * 100_000]
    cache = open_cache(path)
    cache.put_many(texts, vectors(texts))
    assert found(cache, texts) == texts
    assert cache.get_many(["\ud800"]) == [None]  # which the engine refuses
    assert cache.get_many([]) == []


def test_a_text_that_is_repeated_is_kept_once(path):
    cache = open_cache(path)
    cache.put_many(["a", "b", "a"], vectors(["a", "b", "a"]))
    cache.put_many(["a"], vectors(["a"]))
    assert found(cache, ["a", "a", "b", "c"]) == ["a", "a", "b"]
    assert sqlite3.connect(path).execute("SELECT count(*) FROM vectors").fetchone() == (2,)


@pytest.mark.parametrize("about", [{"fingerprint": "ff00", "prompt": ""}, {**ABOUT, "prompt": "Q"}])
def test_another_namespace_knows_nothing(path, about):
    cache = open_cache(path)
    cache.put_many(TEXTS, vectors(TEXTS))
    other = open_cache(path, about)
    assert found(other) == []
    other.put_many(TEXTS[:1], np.zeros((1, DIMENSION), np.float32))
    assert found(cache) == TEXTS
    assert found(open_cache(path, dtype="float16")) == []
    abouts = [row for (row,) in sqlite3.connect(path).execute("SELECT about FROM namespaces")]
    assert len(abouts) == 3
    assert all('"fingerprint": ' in row for row in abouts)  # readable


def test_all_that_decides_the_bits_decides_the_namespace():
    options = EncodeOptions()
    plain = cache_namespace(facts(), options, deterministic=False)
    changed = [
        cache_namespace(facts(), options, deterministic=True),
        *(
            cache_namespace(facts(**change), options, deterministic=False)
            for change in (
                {"fingerprint": "ff00"},
                {"default prompt": "query"},
                {"normalize": False},
                {"device": "cpu"},
                {"dtype": "float32"},
                {"attention backend": "flash_attn_3"},
            )
        ),
        *(
            cache_namespace(facts(), EncodeOptions(**option), deterministic=False)
            for option in (
                {"prompt_name": "query"},
                {"prompt": "P: "},
                {"precision": "int8"},
                {"truncate_dim": 4},
            )
        ),
    ]
    assert plain not in changed
    by_name = cache_namespace(facts(), EncodeOptions(prompt_name="query"), deterministic=False)
    as_it_is = cache_namespace(facts(), EncodeOptions(prompt="Q: "), deterministic=False)
    assert by_name == as_it_is
    same = (
        cache_namespace(facts(device="cuda:3"), options, deterministic=False),
        cache_namespace(facts(), EncodeOptions(batch_tokens=64), deterministic=False),
        cache_namespace(facts(), EncodeOptions(prompt_name="document"), deterministic=False),
    )
    assert all(one == plain for one in same)


def test_a_model_without_a_fingerprint_is_refused():
    with pytest.raises(InputError, match="model 'm' has no fingerprint"):
        cache_namespace(facts(fingerprint=None), EncodeOptions(), deterministic=False)


def test_an_unknown_prompt_is_refused():
    with pytest.raises(InputError, match="prompt_name is 'x', the model has query, document"):
        cache_namespace(facts(), EncodeOptions(prompt_name="x"), deterministic=False)


def test_two_processes_write_at_once(path):
    writers = [start_writer(path, first, first + 400) for first in (0, 200)]
    outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert all("open" in output for output in outputs)
    texts = [f"text number {row}" for row in range(600)]
    assert found(open_cache(path), texts) == texts


def test_a_killed_process_leaves_what_it_had_committed(path):
    for attempt in range(3):
        writer = start_writer(path, attempt * 10_000, attempt * 10_000 + 10_000)
        assert writer.stdout.readline() == "open\n"
        writer.stdout.readline()
        time.sleep(random.Random(attempt).random() * 0.05)
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.communicate()[0].splitlines()[:-1]]
        texts = [
            f"text number {row}"
            for row in range(attempt * 10_000, (said or [attempt * 10_000])[-1] + 20)
        ]
        cache = open_cache(path)
        assert found(cache, texts) == texts
        cache.close()


def test_a_changed_bit_is_a_miss(path):
    cache = open_cache(path)
    cache.put_many(TEXTS, vectors(TEXTS))
    cache.close()
    damaged = bytearray(path.read_bytes())
    place = damaged.index(vector(TEXTS[7]).astype(np.float32).tobytes())
    damaged[place + 3] ^= 4
    path.write_bytes(damaged)
    cache = open_cache(path)
    assert found(cache) == TEXTS[:7] + TEXTS[8:]
    cache.put_many(TEXTS[7:8], vectors(TEXTS[7:8]))  # and is mended
    assert found(cache) == TEXTS


@pytest.mark.parametrize("content", [b"id,text\n1,a\n", b"PAR1" * 100, b"SQLite"])
def test_another_file_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a cache of embeddings"):
        open_cache(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("number", [0, 7])
def test_another_database_is_refused_and_left_alone(path, number):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (a)")
        other.execute(f"PRAGMA application_id = {number}")
    other.close()
    content = path.read_bytes()
    with pytest.raises(InputError, match="is not a cache of embeddings"):
        open_cache(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_a_killed_process_left_empty_becomes_a_cache(path):
    path.touch()
    cache = open_cache(path)
    cache.put_many(TEXTS, vectors(TEXTS))
    assert found(cache) == TEXTS


def truncate(path, kept):
    cache = open_cache(path)
    cache.put_many(TEXTS, vectors(TEXTS))
    cache.close()
    content = path.read_bytes()[:kept]
    path.write_bytes(content)
    return content


@pytest.mark.parametrize("kept", [90, 200, 20_000])
def test_a_file_that_ends_too_early_is_refused_and_left_alone(path, kept):
    content = truncate(path, kept)
    with pytest.raises(InputError, match="the cache is damaged"):
        open_cache(path)
    assert path.read_bytes() == content


def test_damage_that_is_met_later_ends_the_caching_with_one_warning(path):
    truncate(path, None)
    with path.open("r+b") as file:  # all but header, schema and namespaces
        file.seek(3 * 16384)
        file.write(b"\xff" * (path.stat().st_size - 3 * 16384))
    cache = open_cache(path)
    with pytest.warns(UserWarning, match=r"not used any more \(.*malformed\); the job goes on"):
        assert found(cache) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put_many(TEXTS, vectors(TEXTS))
        assert found(cache) == []


def test_a_newer_version_is_refused(path):
    open_cache(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(InputError, match="is a cache of version 2, this release has 1"):
        open_cache(path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"the folder .*/nowhere does not exist"):
        open_cache(tmp_path / "nowhere" / "cache.sqlite")


def test_a_disk_that_is_full_ends_only_the_writing(path):
    cache = open_cache(path)
    cache.put_many(TEXTS[:100], vectors(TEXTS[:100]))
    pages = cache._writer.execute("PRAGMA page_count").fetchone()[0]
    cache._writer.execute(f"PRAGMA max_page_count = {pages}")  # SQLite says the same of a disk
    more = [f"more {row}" for row in range(5000)]
    with pytest.warns(UserWarning, match=r"not added to any more \(.*full\); the job goes on"):
        cache.put_many(more, vectors(more))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put_many(more, vectors(more))
        assert found(cache) == TEXTS[:100]


def test_a_file_that_stays_locked_ends_only_the_writing(path):
    cache = open_cache(path)
    cache._writer.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(UserWarning, match=r"not added to any more \(database is locked\)"):
        cache.put_many(TEXTS, vectors(TEXTS))
    assert found(cache) == []


def test_a_job_computes_only_what_the_cache_does_not_know(path):
    computed = []
    for _ in range(2):
        cache, shards, engine = open_cache(path), MemoryShards(), FakeEngine()
        options = RunnerOptions(DIMENSION, "float32")
        runner = UnitRunner(engine, options, read_blocks(TEXTS), shards.open, cache)
        list(runner.run(make_units(5, 100)))
        cache.close()
        written = np.concatenate([shards.written[number][1] for number in range(5)])
        np.testing.assert_array_equal(written, vectors(TEXTS))
        computed.append(engine.stats.texts)
    assert computed == [500, 0]
