"""Counts of work: the same every time, and other where the work is other."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from c2v_engine.bench import counts
from c2v_engine.bench.counts import Work, count_workload
from c2v_engine.bench.machine.instructions import Event, EventCounter, UncountedError
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.source import StoredCheckpoint
from c2v_engine.bench.models.written import write_checkpoint
from c2v_engine.bench.session import Session

ROOT = Path(__file__).resolve().parents[2]
WORK = Work((3, 5, 9, 14, 20), batch_tokens=24)
PAGE_FAULTS = Event(1, 2)


def open_tiny(directory, shape="tiny-qwen2", method="last-token"):
    write_checkpoint(directory, MODELS[shape], method)
    return Session(StoredCheckpoint(directory, torch.device("cpu")))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("counts") / "model")


@pytest.fixture(scope="module")
def counted(session):
    return count_workload(session, WORK)


def test_two_runs_of_a_process_give_the_same_counts(session, counted):
    assert count_workload(session, WORK) == counted


def test_another_process_gives_the_same_counts(session, counted):
    script = (
        "import json, sys, torch; from pathlib import Path\n"
        "from c2v_engine.bench.counts import Work, count_workload\n"
        "from c2v_engine.bench.models.source import StoredCheckpoint\n"
        "from c2v_engine.bench.session import Session\n"
        "source = StoredCheckpoint(Path(sys.argv[1]), torch.device('cpu'))\n"
        f"print(json.dumps(count_workload(Session(source), Work({WORK.lengths}, '', 24))))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(session.source.stored)],
        capture_output=True,
        text=True,
        timeout=120,
        # Other seeds of hashes, and more threads than one.
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2"},
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == counted


def test_the_counts_are_those_of_the_texts(session, counted):
    tokenized = session.tokenizer(WORK.texts, "")
    rows = [len(text.token_ids) for text in tokenized]
    assert len(set(WORK.texts)) == counted["texts"] == 5
    assert counted["decoder_rows"] == sum(rows)
    assert counted["encoder_tokens"] == 0
    assert sum(rows) / 24 <= counted["batches"] <= 5
    assert counted["operators"] == sum(counted["operators_by_name"].values())
    assert counted["python_calls"] == sum(counted["python_calls_by_module"].values())
    assert counted["peak_bytes"] < counted["allocated_bytes"]
    assert counted["copies"] == 0  # all of it is on the host


def test_matrix_products_are_those_of_the_rows_that_are_computed(session, counted):
    decoder = MODELS["tiny-qwen2"].decoder
    d, wide, kv = decoder.hidden_size, decoder.intermediate_size, 2 * decoder.key_size
    rows, texts, layers = counted["decoder_rows"], counted["texts"], decoder.num_layers
    # In the last layer only what is pooled, one row of each text, is more than keys and values.
    mixed = (layers - 1) * rows + texts
    products = layers * rows * d * kv + mixed * (2 * d * d + 3 * d * wide)
    assert counted["gemm_flop"] == 2 * products


@pytest.fixture
def doubled(monkeypatch, session):
    """An engine that computes every batch twice."""
    engine = session.provider(counts.Spec("engine", "float32")).engine
    model = engine._runner.checkpoint.model
    forward = type(model).forward

    def twice(self, *arguments):
        forward(self, *arguments)
        return forward(self, *arguments)

    monkeypatch.setattr(type(model), "forward", twice)


@pytest.mark.usefixtures("doubled")
def test_batches_that_are_computed_twice_have_more_of_everything(session, counted):
    more = count_workload(session, WORK)
    assert more["gemm_flop"] == 2 * counted["gemm_flop"]
    # Beside the forward there is little: collecting, and what happens once a call.
    for name in ("operators", "allocated_bytes", "python_calls"):
        assert 1.3 < more[name] / counted[name] <= 2
    assert more["batches"] == counted["batches"]


def test_what_counting_changes_is_as_before(session, counted):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        count_workload(session, WORK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert counts.gc.isenabled()
    assert sys.getprofile() is None
    assert counts.pipeline.ThreadPoolExecutor is not counts.InTurn


def test_what_is_submitted_in_turn_is_done_at_once_and_raises_where_it_is_asked_for():
    with counts.InTurn(3, thread_name_prefix="any") as executor:
        done, failed = executor.submit(divmod, 7, 2), executor.submit(divmod, 7, 0)
    assert done.result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_functions_are_counted_by_their_modules():
    def call():
        # Up to Python 3.11 a comprehension is a function, which other releases have not.
        assert [len(text) for text in WORK.texts]

    found = counts.count_calls(call)
    assert found == Counter({counts.LIBRARIES: found[counts.LIBRARIES]})
    from c2v_engine.bench import workloads

    found = counts.count_calls(lambda: [workloads.Lengths().name, workloads.Lengths(3).name])
    assert found["bench.workloads"] == 2


def test_copies_between_devices_are_counted():
    counter = counts.OperatorCounter()
    with counter:
        torch.ones(3).to("meta")
        torch.ones(3).to(torch.float64)
    assert counter.copies == 1


def test_a_thread_s_events_are_counted_where_the_system_lets_it():
    try:
        counter = EventCounter(PAGE_FAULTS)
    except UncountedError as error:
        pytest.skip(str(error))
    with counter:
        bytearray(2**24)
    faults = counter.count
    assert faults > 0
    with counter:
        pass
    assert counter.count < faults
    counter.close()


def test_instructions_that_can_not_be_counted_say_why(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    assert counts.count_instructions(lambda: None) == (
        None,
        "there is no perf_event_open on Plan9",
    )
