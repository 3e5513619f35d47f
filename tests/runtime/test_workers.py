"""Several worker processes: order, stealing, errors, and that no process is left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import worker_fakes
from checkpoints import Recipe, corpus
from damage import assert_refused, copy

from c2v_engine import Causal2Vec
from c2v_engine.errors import BackendError, CheckpointError, TextError
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime import pipeline, units, workers
from c2v_engine.runtime.dispatch import Dispatcher
from c2v_engine.runtime.opening import PipelineOptions
from c2v_engine.runtime.units import cut_by_cost
from c2v_engine.runtime.workers import WorkerPool, device_names

WORDS = " ".join(corpus()).split()
TEXTS = [" ".join(WORDS[n : n + (n * 7) % 23]) for n in range(64)]
WINDOW = 10
GPUS = ["cuda:0", "cuda:1"]
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads than these tiny models can use only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pooled(checkpoint):
    """Two processes of a tiny checkpoint."""
    with Causal2Vec.from_pretrained(
        checkpoint(Recipe()), devices=["cpu", "cpu"], dtype="float32"
    ) as engine:
        yield engine


@pytest.fixture
def single(engine):
    return engine(Recipe())


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW_TEXTS", WINDOW)
    monkeypatch.setattr(units, "_LEAST_CHARACTERS", 1)


@pytest.fixture(scope="module")
def open_pool(checkpoint):
    """``open_pool(opener)``: two processes, by name on GPUs, with a model of ``worker_fakes``."""
    directory = checkpoint(Recipe())

    def open_it(opener=worker_fakes.open_fake):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "device_names", list)
            return WorkerPool(directory, PipelineOptions(), GPUS, opener)

    return open_it


@pytest.fixture(scope="module")
def shared_fakes(open_pool):
    pool = open_pool()
    yield pool
    pool.close()


@pytest.fixture
def fakes(shared_fakes, small_windows):
    """For what leaves the pool whole."""
    return shared_fakes


@pytest.fixture
def own_fakes(open_pool, small_windows):
    """For what does not."""
    pool = open_pool()
    yield pool
    pool.close()


@pytest.fixture
def one_text_units(monkeypatch):
    monkeypatch.setattr(
        workers, "cut_by_cost", lambda costs, *_: [slice(n, n + 1) for n in range(len(costs))]
    )


def stream(pool, texts, report=None):
    return pool.run(texts, "", None, OutputFormat(1), report)


def run(pool, texts, report=None):
    return torch.cat(list(stream(pool, texts, report)))


def lengths(texts):
    return [len(text) for text in texts]


def processes(pool):
    return [worker.process.pid for worker in pool._dispatcher._workers]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def eventually(condition):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the same as one process ----------------------------------------------------------------------


@pytest.mark.parametrize("window", [3, 10, 1000])
def test_two_processes_give_what_one_gives_in_order(
    pooled, single, monkeypatch, small_windows, window
):
    monkeypatch.setattr(pipeline, "_WINDOW_TEXTS", window)
    expected = list(single.encode_stream(iter(TEXTS)))
    found = list(pooled.encode_stream(iter(TEXTS)))
    assert [len(block) for block in found] == [len(block) for block in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_the_defaults_of_windows_and_units_give_it_too(pooled, single):
    texts = [f"{TEXTS[n % 60]} {n % 997}" for n in range(3000)]
    np.testing.assert_allclose(pooled.encode(texts), single.encode(texts), rtol=0, atol=1e-6)


def test_deterministic_engines_agree_to_the_bit(checkpoint, small_windows):
    options = {"dtype": "float32", "deterministic": True}
    alone = Causal2Vec.from_pretrained(checkpoint(Recipe()), device="cpu", **options)
    with Causal2Vec.from_pretrained(
        checkpoint(Recipe()), devices=["cpu", "cpu"], **options
    ) as engine:
        assert np.array_equal(engine.encode(TEXTS), alone.encode(TEXTS))


@pytest.mark.parametrize("precision", ["float16", "int8", "uint8", "binary", "ubinary"])
def test_every_precision_comes_back(pooled, single, precision, small_windows):
    width = single.output_dimension()
    ranges = np.stack([np.full(width, -0.3), np.full(width, 0.3)]).astype(np.float32)
    options = {"precision": precision, "ranges": ranges}
    found, expected = pooled.encode(TEXTS, **options), single.encode(TEXTS, **options)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if precision == "float16":
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    elif precision.endswith("binary"):
        # A dimension within rounding of zero may change sides.
        assert np.unpackbits((found ^ expected).view(np.uint8)).mean() < 1e-3
    else:
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_bfloat16_tensors_come_back(pooled, single, small_windows):
    options = {"precision": "bfloat16", "convert_to": "tensor"}
    found, expected = pooled.encode(TEXTS, **options), single.encode(TEXTS, **options)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=2**-8)


def test_one_string_and_none_at_all(pooled, single):
    for text in ("", "one text"):
        np.testing.assert_allclose(pooled.encode(text), single.encode(text), rtol=0, atol=1e-6)
    assert pooled.encode([]).shape == (0, single.output_dimension())
    assert list(pooled.encode_stream(iter(()))) == []


def test_prompts_reach_the_workers(pooled, single):
    found, expected = pooled.encode_query(TEXTS), single.encode_query(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(found - pooled.encode(TEXTS)).max() > 1e-3


def test_a_pool_says_what_it_is(pooled, single):
    assert pooled.info() == {**single.info(), "device": "cpu, cpu"}
    assert (pooled.device, pooled.dtype) == (torch.device("cpu"), torch.float32)


def test_stats_and_progress_count_equal_texts_each_and_compute_them_once(fakes):
    before, steps = dict(vars(fakes.stats)), []
    found = run(fakes, ["ab", "abc"] * 10, steps.append)
    assert found[:, 0].tolist() == [2, 3] * 10
    after = vars(fakes.stats)
    assert after["texts"] - before["texts"] == sum(steps) == 20
    assert after["tokens"] - before["tokens"] == 5
    assert after["batches"] > before["batches"]


def test_a_pool_adds_up_the_seconds_and_lengths_of_its_workers(pooled):
    before = replace(pooled.stats)
    pooled.encode([*TEXTS, *TEXTS])
    counted = pooled.stats.since(before)
    assert counted.lengths.sum() == len(set(TEXTS))
    assert counted.texts == 2 * len(TEXTS)
    assert counted.busy_seconds > 0 < counted.tokenize_seconds


def test_a_bad_text_of_the_real_thing_is_named(pooled, small_windows):
    texts = [*TEXTS[:37], "a\udfff", *TEXTS]
    with pytest.raises(TextError, match="surrogates") as caught:
        pooled.encode(texts)
    assert caught.value.row == 37
    assert np.isfinite(pooled.encode(TEXTS)).all()


# --- windows, units, streams ----------------------------------------------------------------------


class Source:
    """An iterable that counts how far it was read."""

    def __init__(self, texts):
        self.texts = texts
        self.read = 0

    def __iter__(self):
        for text in self.texts:
            self.read += 1
            yield text


def test_nothing_is_read_before_the_first_block_is_asked_for(fakes):
    source = Source(TEXTS)
    blocks = stream(fakes, source)
    assert source.read == 0
    next(blocks)
    assert source.read > 0


def test_no_more_than_two_windows_a_worker_are_read_ahead(fakes):
    source = Source([f"{n}" for n in range(200)])
    returned = 0
    for block in stream(fakes, source):
        assert source.read - returned <= 2 * 2 * WINDOW
        returned += len(block)
    assert returned == source.read == 200


def test_an_endless_source_is_served_and_left(fakes):
    def endless():
        number = 0
        while True:
            yield "x" * (number % 7)
            number += 1

    blocks = stream(fakes, endless())
    rows = torch.cat([next(blocks) for _ in range(8)])
    assert rows[:, 0].tolist() == [n % 7 for n in range(8 * WINDOW)]
    blocks.close()
    assert run(fakes, TEXTS)[:, 0].tolist() == lengths(TEXTS)


def test_a_stream_left_early_is_not_computed_to_its_end(fakes, one_text_units, tmp_path):
    """Both workers stand at a gate, with units waiting that would not end."""
    gates, closed = [tmp_path / "one", tmp_path / "two"], tmp_path / "closed"
    texts = [f"{n}" for n in range(2 * WINDOW)]
    texts += [f"gate {gate}{' ' * (100 - n)}" for n, gate in enumerate(gates)]
    texts += [f"gate {closed}{' ' * n}" for n in range(2 * WINDOW - 2)]
    blocks = stream(fakes, texts)
    next(blocks)
    blocks.close()
    dispatcher = fakes._dispatcher

    def given_back():
        held = [unit for worker in dispatcher._workers for unit in list(worker.held.values())]
        recalled = any(worker.recalled for worker in dispatcher._workers)
        return len(held) <= 2 and not recalled and all(unit.call.abandoned for unit in held)

    eventually(given_back)
    # A worker that was slow to start may stand at the closed gate in place of one of the two.
    for gate in (*gates, closed):
        gate.touch()
    assert run(fakes, TEXTS)[:, 0].tolist() == lengths(TEXTS)


def test_streams_of_one_pool_do_not_disturb_each_other(fakes):
    texts = [f"{'x' * (n % 31)}" for n in range(100)]
    streams = [stream(fakes, texts), stream(fakes, reversed(texts))]
    both = list(zip(*streams, strict=True))
    forward, backward = (torch.cat(blocks)[:, 0].tolist() for blocks in zip(*both, strict=True))
    assert forward == lengths(texts)
    assert backward == forward[::-1]


def test_threads_may_share_a_pool(fakes):
    found = {}

    def embed(name):
        texts = ["x" * ((n * name) % 29) for n in range(300)]
        found[name] = (run(fakes, texts)[:, 0].tolist(), lengths(texts))

    threads = [threading.Thread(target=embed, args=(name,)) for name in (3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert sorted(found) == [3, 5, 7]
    for got, expected in found.values():
        assert got == expected


@pytest.mark.parametrize("number", [1, 2, 40, 5000])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_units_are_the_texts_once_each_and_the_last_are_small(number, workers):
    costs = sorted(((n * 37) % 500 + 12 for n in range(number)), reverse=True)
    parts = cut_by_cost(costs, workers, 8000)
    assert [n for part in parts for n in range(number)[part]] == list(range(number))
    sizes = [sum(costs[part]) for part in parts]
    if sum(costs) > 16 * workers * 8000:
        assert len(parts) >= 4 * workers
        assert all(size >= 4000 for size in sizes)
        assert max(sizes[-workers:]) < sum(costs) / (8 * workers)
    if sum(costs) < 4096:
        assert len(parts) == 1  # not worth more than one worker


# --- stealing -------------------------------------------------------------------------------------


def test_a_unit_that_waits_for_a_slow_worker_is_given_to_one_that_is_idle(
    fakes, monkeypatch, tmp_path
):
    gate = tmp_path / "gate"
    texts = [f"{'x' * (n % 9)}{n}" for n in range(2 * WINDOW)]
    texts[7] = f"gate {gate}{' ' * 200}"
    given = []

    def recording(self, worker, unit):
        given.append((worker.process.pid, unit))
        return give(self, worker, unit)

    give = Dispatcher._give
    monkeypatch.setattr(Dispatcher, "_give", recording)
    done = 0

    def report(count):
        nonlocal done
        done += count
        if done == len(texts) - 1:  # all but the one at the gate: also those that waited behind it
            gate.touch()

    found = run(fakes, texts, report)
    assert found[:, 0].tolist() == lengths(texts)
    slow = int(found[7, 1])
    others = set(found[[n for n in range(len(texts)) if n != 7], 1].tolist())
    assert others == set(processes(fakes)) - {slow}
    twice = [unit for unit, times in Counter(unit for _, unit in given).items() if times > 1]
    assert len(twice) == 1
    assert [pid == slow for pid, unit in given if unit is twice[0]] == [True, False]


def test_no_unit_is_lost_or_computed_twice_as_units_change_hands(fakes, one_text_units):
    before = dict(vars(fakes.stats))
    for number in range(100):
        texts = ["x" * n for n in range(3 + number % 5)]
        assert run(fakes, texts)[:, 0].tolist() == lengths(texts)
    computed = sum(3 + number % 5 for number in range(100))
    assert fakes.stats.texts - before["texts"] == computed
    assert fakes.stats.batches - before["batches"] == computed


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 19, 20, 57])
@pytest.mark.parametrize("bad", [None, b"x", "bad"])
def test_a_bad_text_is_named_by_its_row_after_the_blocks_before_it(fakes, row, bad):
    texts = [f"{n}" for n in range(100)]
    texts.insert(row, bad)
    blocks, found = stream(fakes, texts), []
    with pytest.raises(TextError) as caught:
        found.extend(blocks)
    assert caught.value.row == row
    # Texts that are none are found as they are read, bad ones when their whole window is.
    whole = row // (2 * WINDOW) * 2 * WINDOW if bad == "bad" else row // WINDOW * WINDOW
    assert [n for block in found for n in block[:, 0].tolist()] == lengths(texts[:whole])
    assert run(fakes, ["abc"])[:, 0].tolist() == [3]


def test_a_source_that_fails_is_not_hidden(fakes):
    def broken():
        yield from ["abc"] * 35
        raise OSError("the disk is gone")

    blocks, found = stream(fakes, broken()), []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(blocks)
    assert sum(map(len, found)) == 30


def test_other_errors_name_the_device_and_show_where(fakes):
    with pytest.raises(RuntimeError, match=r"cuda:\d: ZeroDivisionError: something else") as caught:
        run(fakes, ["fine", "boom", "fine"])
    assert "worker_fakes.py" in str(caught.value.__cause__)
    assert run(fakes, ["abc"])[:, 0].tolist() == [3]


@pytest.mark.parametrize(
    ("text", "words"), [("exit 3", "exit code 3"), ("killed", r"signal 9 \(SIGKILL\)")]
)
def test_a_worker_that_dies_is_an_error_that_names_it(
    own_fakes, one_text_units, text, words, tmp_path
):
    before = processes(own_fakes)
    # The other worker can not end by itself.
    texts = [f"gate {tmp_path / 'never'}{' ' * 200}", text + " " * 190, *TEXTS]
    with pytest.raises(BackendError, match=rf"on cuda:\d .*{words}"):
        run(own_fakes, texts)
    assert not any(map(alive, before))
    with pytest.raises(BackendError, match=rf"{words}.*is closed"):
        run(own_fakes, ["later"])


def test_a_worker_that_dies_idle_is_noticed(own_fakes):
    assert run(own_fakes, ["abc"])[:, 0].tolist() == [3]
    before = processes(own_fakes)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: not any(map(alive, before)))
    with pytest.raises(BackendError, match=r"cuda:0 was ended by signal 9 \(SIGKILL\)"):
        run(own_fakes, ["later"])


def test_closing_fails_what_waits_and_what_comes_later(own_fakes, tmp_path):
    before = processes(own_fakes)
    blocks = stream(own_fakes, [f"gate {tmp_path / 'never'}"] * 50)
    failed = []

    def wait():
        with pytest.raises(BackendError, match="was closed") as caught:
            next(blocks)
        failed.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: any(worker.held for worker in own_fakes._dispatcher._workers))
    own_fakes.close()
    own_fakes.close()
    thread.join(PATIENCE_SECONDS)
    assert failed
    assert not any(map(alive, before))
    with pytest.raises(BackendError, match="was closed"):
        run(own_fakes, ["later"])


def test_a_forked_copy_says_so_and_leaves_the_workers_alone(fakes):
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def encode():
        try:
            run(fakes, ["text"])
            send.send("embedded")
        except BackendError as error:
            fakes.close()
            send.send(str(error))

    child = context.Process(target=encode)
    child.start()
    try:
        assert receive.poll(PATIENCE_SECONDS)
        assert "load it in each process" in receive.recv()
    finally:
        child.kill()
        child.join()
    assert run(fakes, ["abc"])[:, 0].tolist() == [3]


@pytest.mark.parametrize(
    ("opener", "error", "words"),
    [
        (worker_fakes.open_refusing, CheckpointError, "cuda:1: a weight is missing"),
        (worker_fakes.open_raising, RuntimeError, "cuda:1: ZeroDivisionError: something else"),
        (worker_fakes.open_dying, BackendError, "cuda:1 ended with exit code 7 before"),
        (worker_fakes.open_mixed, BackendError, "cuda:0 torch.float32, cuda:1 torch.bfloat16"),
    ],
)
def test_a_model_that_does_not_load_is_an_error_and_leaves_no_process(
    open_pool, opener, error, words
):
    before = set(multiprocessing.active_children())
    with pytest.raises(error, match=words):
        open_pool(opener)
    assert set(multiprocessing.active_children()) == before


def test_a_pool_that_is_forgotten_ends(open_pool):
    pool = open_pool()
    pids = processes(pool)
    assert all(map(alive, pids))
    del pool
    gc.collect()
    assert not any(map(alive, pids))


# --- the parent's end -----------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
import worker_fakes
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime import pipeline
from c2v_engine.runtime.opening import PipelineOptions
from c2v_engine.runtime.workers import WorkerPool

def run(pool, texts):
    return sum(len(block) for block in pool.run(texts, "", None, OutputFormat(1)))

def main(gate):
    pool = WorkerPool({directory!r}, PipelineOptions(), ["cpu", "cpu"], worker_fakes.open_fake)
    print(*(worker.process.pid for worker in pool._dispatcher._workers), flush=True)
    if not (forked := os.fork()):
        return  # a copy that ends as any program does
    os.waitpid(forked, 0)
    pipeline._WINDOW_TEXTS = 2
    def texts():
        yield from (f"gate {{gate}}" + " " * n for n in range(4))
        print("running", flush=True)
    try:
        run(pool, texts())
    except KeyboardInterrupt:
        gate.touch()
        print("interrupted", run(pool, ["a", "b"]), flush=True)
    if not os.fork():  # a copy that lives on, with all that the parent had open
        time.sleep(1000)
    print("copied", flush=True)
    if sys.stdin.readline():
        return

if __name__ {guard}:
    main(Path({gate!r}))
"""


@contextmanager
def running_script(checkpoint, tmp_path, guard="== '__main__'"):
    """The script in a session of its own, and the file with its complaints."""
    path, complaints = tmp_path / "script.py", tmp_path / "complaints"
    directory, gate = str(checkpoint(Recipe())), str(tmp_path / "gate")
    path.write_text(SCRIPT.format(directory=directory, gate=gate, guard=guard))
    folders = [str(Path(__file__).parent), *filter(None, sys.path)]
    with open(complaints, "w") as errors:
        script = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        )
    try:
        yield script, complaints
    finally:
        with suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        script.stdin.close()
        script.stdout.close()
        script.wait()


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_workers_outlive_an_interrupt_but_not_their_parent(checkpoint, tmp_path, end):
    with running_script(checkpoint, tmp_path) as (parent, complaints):
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        assert parent.stdout.readline() == "running\n"
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "interrupted 2\n"
        assert parent.stdout.readline() == "copied\n"
        assert all(map(alive, pids))
        if end == "kill":
            parent.kill()
        else:
            parent.stdin.write("end\n")
            parent.stdin.flush()
        assert parent.wait(PATIENCE_SECONDS) == (0 if end == "exit" else -signal.SIGKILL)
        eventually(lambda: not any(map(alive, pids)))
        assert complaints.read_text() == ""


def test_a_script_that_does_not_guard_its_start_is_told_to(checkpoint, tmp_path):
    guard = "in ('__main__', '__mp_main__')"
    with running_script(checkpoint, tmp_path, guard) as (script, complaints):
        assert script.wait(PATIENCE_SECONDS) == 1
        assert script.stdout.read() == ""
        [*_, last] = complaints.read_text().splitlines()
    assert "BackendError: the worker process on cpu ended with exit code 1 before" in last
    assert "if __name__ == '__main__'" in last


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([], "devices is []"),
        ("cpu", "devices is 'cpu'"),
        (0, "devices is 0"),
        ([-1], "devices holds -1"),
        ([True], "devices holds True"),
        ([1.0], "devices holds 1.0"),
        (["cpu", None], "devices holds None"),
        (["cpu", "tpu"], "device is 'tpu'"),
        (["cpu", "meta"], "device is 'meta'"),
        ([977], "device is 'cuda:977'"),
    ],
)
def test_devices_that_can_not_be_are_refused_before_a_process_starts(checkpoint, devices, words):
    before = multiprocessing.active_children()
    assert_refused(
        lambda: Causal2Vec.from_pretrained(checkpoint(Recipe()), devices=devices),
        words,
        error=BackendError,
    )
    assert multiprocessing.active_children() == before


def test_a_device_and_devices_are_one_too_many(checkpoint):
    assert_refused(
        lambda: Causal2Vec.from_pretrained(checkpoint(Recipe()), "cpu", devices=["cpu"]),
        "device is 'cpu' and devices is ['cpu']",
        error=BackendError,
    )


def test_gpus_go_by_number_or_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_names([3, "cuda:1", np.int64(0), "cuda", "cpu"]) == [
        *("cuda:3", "cuda:1", "cuda:0", "cuda:0", "cpu")
    ]
    with pytest.raises(BackendError, match="only 4 GPUs"):
        device_names([4])


def test_a_damaged_checkpoint_is_the_same_error_as_in_one_process(checkpoint, tmp_path):
    place = copy(checkpoint(Recipe()), tmp_path)
    (place / "projector.safetensors").unlink()
    before = set(multiprocessing.active_children())
    assert_refused(
        lambda: Causal2Vec.from_pretrained(place, devices=["cpu"]),
        "cpu: ",
        "projector.safetensors",
        error=CheckpointError,
    )
    assert set(multiprocessing.active_children()) == before
