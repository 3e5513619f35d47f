"""The compute thread: every request gets its own, and a failure stays where it belongs."""

import asyncio
import threading
import time

import pytest
import torch
from queued import ready, request

from c2v_engine.errors import TextError
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.serving.batching import batcher as module
from c2v_engine.serving.batching.admission import Admission
from c2v_engine.serving.batching.batcher import Batcher
from c2v_engine.serving.refusals import ComputeError, UnavailableError

WIDTH = 4
BUDGET = 100
PROBE = 7  # rows of the text known to be good


class Launched:
    def __init__(self, runner, texts):
        self.runner, self.texts = runner, texts

    def result(self):
        self.runner.flying -= 1
        self.runner.check(self.texts, self.runner.bad_results)
        rows = torch.tensor([float(text.rows) for text in self.texts])
        finite = torch.tensor([text.rows not in self.runner.not_finite for text in self.texts])
        return rows[:, None].repeat(1, WIDTH), finite


class FakeRunner:
    """Gives every text its number of rows; fails at texts by theirs."""

    batch_tokens = BUDGET

    def __init__(self, ahead=0):
        self.ahead = ahead
        self.batches = []
        self.bad, self.bad_results, self.not_finite = set(), set(), set()
        self.broken = False
        self.memory = 10**9
        self.flying = self.most_flying = self.released = 0
        self.gate = threading.Event()
        self.gate.set()

    def check(self, texts, bad):
        if self.broken or any(text.rows in bad for text in texts):
            raise RuntimeError("no\nluck")

    def launch(self, texts, output):
        self.gate.wait()
        if sum(text.rows for text in texts) > self.memory:
            raise torch.OutOfMemoryError("full")
        self.check(texts, self.bad)
        self.batches.append([text.rows for text in texts])
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        return Launched(self, texts)

    def release_memory(self):
        self.released += 1


class Watcher:
    def __init__(self):
        self.reports, self.failures = [], []

    def batch(self, report):
        self.reports.append(report)

    def failure(self, reason):
        self.failures.append(reason)


@pytest.fixture
def live(monkeypatch):
    """``live(runner)`` gives a batcher that runs, and its watcher."""
    monkeypatch.setattr(module, "_FIRST_RETRY", 0.01)
    monkeypatch.setattr(module, "_LAST_RETRY", 0.02)
    made = []

    def start(runner, begin=True):
        watcher = Watcher()
        probe = (ready(PROBE), OutputFormat(WIDTH))
        made.append(Batcher(runner, Admission(10_000, 60, BUDGET), BUDGET, probe, [watcher]))
        if begin:
            made[-1].start()
        return made[-1], watcher

    yield start
    for batcher in made:
        batcher.close()


def ask(batcher, *requests, before=None):
    """Push requests of texts of these many rows; the embedding or error of each."""

    async def run():
        loop = asyncio.get_running_loop()
        tickets = []
        for tokens in requests:
            ticket, texts = request(*tokens, loop=loop)
            batcher.push(ticket, texts, 0)
            tickets.append(ticket)
        if before is not None:
            before()
        done = asyncio.gather(*(ticket.done for ticket in tickets), return_exceptions=True)
        return await asyncio.wait_for(done, 20)

    return [
        outcome if isinstance(outcome, Exception) else outcome.embeddings[:, 0].tolist()
        for outcome in asyncio.run(run())
    ]


def test_requests_share_batches_and_get_their_own(live):
    runner = FakeRunner()
    batcher, watcher = live(runner, begin=False)
    outcomes = ask(batcher, [3, 4], [5], [6, 90, 8], before=batcher.start)
    assert outcomes == [[3, 4], [5], [6, 90, 8]]
    assert [sorted(batch) for batch in runner.batches] == [[3, 4, 5, 6, 8], [90]]
    assert [(r.texts, r.tokens, r.budget) for r in watcher.reports] == [(5, 26, 100), (1, 90, 100)]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_as_many_batches_are_under_way_as_are_worth_it(live, ahead):
    runner = FakeRunner(ahead)
    batcher, _ = live(runner, begin=False)
    assert ask(batcher, [60] * 7, before=batcher.start) == [[60] * 7]
    assert runner.most_flying == ahead + 1
    assert runner.flying == 0


@pytest.mark.parametrize("where", ["bad", "bad_results"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_one_bad_text_fails_its_own_request_alone(live, where, ahead):
    runner = FakeRunner(ahead)
    getattr(runner, where).add(13)
    batcher, watcher = live(runner, begin=False)
    outcomes = ask(batcher, [1, 2], [13, 3], [4], [5, 6, 8], before=batcher.start)
    assert [outcomes[0], *outcomes[2:]] == [[1, 2], [4], [5, 6, 8]]
    assert isinstance(outcomes[1], ComputeError)
    assert str(outcomes[1]) == "text 0: the model failed: RuntimeError: no luck"
    assert watcher.failures
    assert batcher.failure is None


def test_a_text_without_a_finite_embedding_fails_its_own_request_alone(live):
    runner = FakeRunner()
    runner.not_finite.add(13)
    batcher, watcher = live(runner, begin=False)
    outcomes = ask(batcher, [1, 2], [3, 13], [4], before=batcher.start)
    assert [outcomes[0], outcomes[2]] == [[1, 2], [4]]
    assert isinstance(outcomes[1], ComputeError)
    assert str(outcomes[1]).startswith("text 1: its embedding is not finite")
    assert len(watcher.failures) == 1
    assert batcher.failure is None


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("how", ["broken", "not_finite"])
def test_a_model_that_fails_is_not_asked_until_it_works_again(live, how, ahead):
    runner = FakeRunner(ahead)
    setattr(runner, how, True if how == "broken" else {PROBE, 60})
    batcher, _ = live(runner, begin=False)
    outcomes = ask(batcher, *[[60]] * 6, before=batcher.start)
    assert all(isinstance(outcome, (ComputeError, UnavailableError)) for outcome in outcomes)
    assert batcher.failure is not None
    ticket, texts = request(1)
    with pytest.raises(UnavailableError, match="does not embed"):
        batcher.admit(ticket)
    with pytest.raises(UnavailableError):
        batcher.push(ticket, texts, 0)
    setattr(runner, how, False if how == "broken" else set())
    for _ in range(500):
        if batcher.failure is None:
            break
        time.sleep(0.01)
    assert ask(batcher, [60]) == [[60]]
    assert (batcher.waiting_tokens, batcher.waiting_texts) == (0, 0)


def test_a_batch_that_does_not_fit_in_memory_is_halved_and_later_ones_are_no_larger(live):
    runner = FakeRunner()
    runner.memory = 50
    batcher, _ = live(runner, begin=False)
    assert ask(batcher, [20] * 10, before=batcher.start) == [[20] * 10]
    assert batcher.batch_tokens <= 60
    assert runner.released > 0
    assert all(sum(batch) <= 50 for batch in runner.batches)


def test_batches_are_whole_again_some_time_after_memory_ran_out(live, monkeypatch):
    runner = FakeRunner()
    runner.memory = 50
    batcher, _ = live(runner, begin=False)
    ask(batcher, [20] * 10, before=batcher.start)
    assert batcher.batch_tokens < BUDGET
    runner.memory = 10**9
    monkeypatch.setattr(module, "_SHRUNK_SECONDS", 0.0)
    ask(batcher, [20] * 10)
    assert batcher.batch_tokens == BUDGET


def test_a_text_that_never_fits_in_memory_fails_its_own_request(live):
    runner = FakeRunner()
    runner.memory = 50
    batcher, _ = live(runner, begin=False)
    outcomes = ask(batcher, [80, 1], [2], before=batcher.start)
    assert isinstance(outcomes[0], TextError)
    assert outcomes[0].row == 0
    assert outcomes[1] == [2]
    assert batcher.failure is None


def test_what_was_given_up_is_not_computed(live):
    runner = FakeRunner()
    runner.gate.clear()
    batcher, _ = live(runner)

    def give_up():
        time.sleep(0.1)
        batcher.give_up(gone)
        runner.gate.set()

    gone, texts = request(*[50] * 20)
    batcher.push(gone, texts, 0)
    assert ask(batcher, [3], before=give_up) == [[3]]
    assert sum(map(len, runner.batches)) <= 3 + 1
    assert (batcher.waiting_tokens, batcher.waiting_texts) == (0, 0)


def test_room_is_reserved_until_texts_wait_or_the_request_is_over(live):
    batcher, _ = live(FakeRunner(), begin=False)
    ticket, texts = request(10, 20)
    ticket.reserved = 50
    batcher.admit(ticket)
    assert batcher.waiting_tokens == 50
    batcher.push(ticket, texts[:1], 30)
    assert batcher.waiting_tokens == 30
    batcher.give_up(ticket)
    assert batcher.waiting_tokens == 0
    batcher.push(ticket, texts[1:], 20)  # too late
    assert (batcher.waiting_tokens, batcher.waiting_texts) == (0, 0)


def test_an_end_fails_what_waits_and_gives_what_is_under_way(live):
    runner = FakeRunner()
    runner.gate.clear()
    batcher, _ = live(runner)

    def end():
        while batcher.waiting_texts > 1:  # until the first is taken
            time.sleep(0.01)
        closing = threading.Thread(target=batcher.close)
        closing.start()
        while not batcher._closing:
            time.sleep(0.01)
        runner.gate.set()
        closing.join(20)
        assert not closing.is_alive()

    outcomes = ask(batcher, [60], [61], before=end)
    assert outcomes[0] == [60]
    assert isinstance(outcomes[1], UnavailableError)
    with pytest.raises(UnavailableError, match="shutting down"):
        batcher.admit(request(1)[0])


def test_an_end_that_comes_just_when_texts_are_taken_loses_none(live):
    batcher, _ = live(FakeRunner(), begin=False)
    take = batcher._queue.take

    def take_and_end(batch_tokens):
        texts = take(batch_tokens)
        batcher._closing = True
        return texts

    batcher._queue.take = take_and_end
    assert ask(batcher, [60], before=batcher.start) == [[60]]


def test_an_observer_that_fails_harms_nobody(live, caplog):
    runner = FakeRunner()
    runner.bad.add(13)
    batcher, watcher = live(runner, begin=False)
    watcher.batch = watcher.failure = None  # not to be called
    outcomes = ask(batcher, [1], [13], [60], before=batcher.start)
    assert [outcomes[0], outcomes[2]] == [[1], [60]]
    assert isinstance(outcomes[1], ComputeError)
    assert batcher.failure is None
    assert "Watcher failed" in caplog.text


def test_a_mistake_of_ours_in_the_thread_fails_requests_and_not_the_server(live):
    runner = FakeRunner()
    batcher, watcher = live(runner, begin=False)
    broken = iter([True])

    def hand_out(*arguments):
        if next(broken, False):
            raise KeyError("ours")
        return type(batcher)._hand_out(batcher, *arguments)

    batcher._hand_out = hand_out
    [outcome] = ask(batcher, [1], before=batcher.start)
    assert isinstance(outcome, ComputeError)
    for _ in range(500):
        if batcher.failure is None:
            break
        time.sleep(0.01)
    assert ask(batcher, [2]) == [[2]]
    assert any("ours" in failure for failure in watcher.failures)
