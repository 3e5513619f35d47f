"""The service gives what ``encode`` gives, to many at once, and refuses by name."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from recipes import Recipe

from c2v_engine import Causal2Vec
from c2v_engine.errors import BackendError, InputError, TextError
from c2v_engine.serving.contract import EmbedOptions, State
from c2v_engine.serving.refusals import (
    OverloadedError,
    RequestTooLargeError,
    TextTooLongError,
    TimedOutError,
    UnavailableError,
)
from c2v_engine.serving.service import EmbeddingService, ServiceOptions

TEXTS = ["", "cat", "the cat food", "a dog", "the " * 20, "cat dog " * 9, "é的 ", "cat"]
INSTRUCTION = Recipe(
    template=("<bos>", "{prompt}", "<context>", "{text}", "<eos>"),
    prompts=(("query", "Instruct: find the cat that eats the food\nQuery: "), ("document", "")),
    max_length=160,
)


@pytest.fixture(scope="module")
def model(checkpoint):
    return Causal2Vec.from_pretrained(checkpoint(INSTRUCTION), device="cpu", deterministic=True)


@pytest.fixture
def serve(model):
    made = []

    def start(engine=None, warm=True, **options):
        options.setdefault("queue_tokens", 100_000)
        made.append(EmbeddingService(engine or model, ServiceOptions(**options)))
        if warm:
            made[-1].warm_up()
        return made[-1]

    yield start
    for service in made:
        service.close()


def run(service, texts, **options):
    return asyncio.run(service.embed(texts, EmbedOptions(**options)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prompt_name": "query"},
        {"normalize": False},
        {"truncate_dim": 8, "prompt_name": "document"},
        {"precision": "float16", "prompt_name": "query"},
        {"precision": "ubinary"},
        {"precision": "binary", "truncate_dim": 16},
    ],
    ids=str,
)
def test_embeddings_are_those_of_encode_to_the_bit(serve, model, options):
    """The engine is deterministic: no batch changes a text's bits."""
    result = run(serve(), TEXTS, **options)
    named = dict(options)
    if "normalize" in named:
        named["normalize_embeddings"] = named.pop("normalize")
    expected = model.encode(TEXTS, **named)
    assert result.embeddings.dtype == expected.dtype
    assert np.array_equal(result.embeddings, expected)


def test_ranges_of_the_checkpoint_serve_int8(checkpoint, serve, tmp_path):
    model = Causal2Vec.from_pretrained(checkpoint(INSTRUCTION), device="cpu", deterministic=True)
    service = serve(model)
    with pytest.raises(InputError, match="fixed ranges"):
        run(service, TEXTS, precision="int8")
    model.calibrate(TEXTS)
    assert np.array_equal(
        run(service, TEXTS, precision="int8").embeddings, model.encode(TEXTS, precision="int8")
    )


def test_requests_of_all_kinds_at_once_get_their_own(serve, model):
    service = serve(batch_tokens=64)
    kinds = [{}, {"prompt_name": "query"}, {"truncate_dim": 8}, {"precision": "ubinary"}]
    rng = np.random.default_rng(0)
    asked = []
    for number in range(120):
        texts = [f"cat {number} {i} " * rng.integers(1, 12) for i in range(rng.integers(1, 9))]
        asked.append((texts, kinds[number % len(kinds)]))

    async def ask():
        return await asyncio.gather(
            *(service.embed(texts, EmbedOptions(**kind)) for texts, kind in asked)
        )

    for (texts, kind), result in zip(asked, asyncio.run(ask()), strict=True):
        assert np.array_equal(result.embeddings, model.encode(texts, **kind))
    snapshot = service.snapshot()
    assert (snapshot.queue_tokens, snapshot.queued_texts, snapshot.requests) == (0, 0, 0)


def test_a_request_of_many_texts_is_tokenised_in_parts_and_comes_whole(serve, model):
    texts = [f"cat {i} " * (i % 7 + 1) for i in range(1000)]
    result = run(serve(), texts)
    assert np.array_equal(result.embeddings, model.encode(texts))


def test_tokens_are_the_rows_of_the_decoder(serve, model):
    service = serve()
    for name in ("query", "document"):
        result = run(service, TEXTS, prompt_name=name)
        sequences = asyncio.run(service.tokenize(TEXTS, name))
        # A sequence for people leaves the contextual token out.
        assert result.tokens.tolist() == [len(sequence) + 1 for sequence in sequences]


def test_tokens_say_where_they_stand(serve):
    [sequence] = asyncio.run(serve().tokenize(["the cat"]))
    assert [sequence[0].special, sequence[-1].special] == [True, True]
    inner = sequence[1:-1]
    assert "".join(token.text for token in inner) == "the cat"
    assert [(token.start, token.stop) for token in inner] == [
        ("the cat".index(token.text), "the cat".index(token.text) + len(token.text))
        for token in inner
    ]
    assert asyncio.run(serve().tokenize(["the cat"], None, False)) == [inner]


def test_no_text_gives_no_rows(serve, model):
    assert run(serve(), [], precision="ubinary").embeddings.shape == (
        0,
        model.output_dimension(None, "ubinary"),
    )


def test_timings_are_parts_of_the_whole(serve):
    service = serve()
    begin = time.perf_counter()
    timings = run(service, TEXTS).timings
    whole = time.perf_counter() - begin
    parts = (timings.tokenize, timings.queue, timings.compute)
    assert all(part >= 0 for part in parts)
    assert 0 < sum(parts) <= whole


def test_a_long_text_is_refused_or_shortened_as_was_asked(serve, model):
    texts = ["cat", "the cat " * 400]
    with pytest.raises(TextTooLongError, match=r"text 1: .*longer than the \d+ tokens"):
        run(serve(), texts)
    expected = model.encode(texts)
    assert np.array_equal(run(serve(), texts, truncate=True).embeddings, expected)
    shortening = serve(truncate=True)
    assert np.array_equal(run(shortening, texts).embeddings, expected)
    with pytest.raises(TextTooLongError):
        run(shortening, texts, truncate=False)


@pytest.mark.parametrize(
    "options",
    [{"prompt_name": "qeury"}, {"truncate_dim": 7}, {"truncate_dim": 10**9}, {"precision": "int4"}],
    ids=str,
)
def test_options_that_can_not_be_are_refused(serve, options):
    service = serve()
    with pytest.raises(InputError):
        run(service, ["cat"], **options)


def test_bfloat16_can_not_be_sent(serve):
    with pytest.raises(InputError, match="bfloat16"):
        run(serve(), ["cat"], precision="bfloat16")


def test_a_bad_text_is_named_by_its_row_and_harms_no_other(serve, model):
    service = serve()

    async def ask():
        many = ["cat"] * 300
        return await asyncio.gather(
            service.embed([*many, "a\ud800b", "dog"]),
            service.embed(["cat"]),
            return_exceptions=True,
        )

    refused, good = asyncio.run(ask())
    assert isinstance(refused, TextError)
    assert refused.row == 300
    assert np.array_equal(good.embeddings, model.encode(["cat"]))
    assert service.snapshot().queue_tokens == 0


def test_more_than_may_wait_is_refused(serve):
    service = serve(queue_tokens=500, batch_tokens=64)

    async def ask():
        many = [service.embed(["cat food " * 8] * 4) for _ in range(40)]
        return await asyncio.gather(*many, return_exceptions=True)

    outcomes = asyncio.run(ask())
    refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert refused
    assert len(refused) < len(outcomes)
    assert all(isinstance(error, OverloadedError) and error.retry_after >= 1 for error in refused)
    with pytest.raises(RequestTooLargeError, match="send it in parts"):
        run(service, ["cat food " * 8] * 1000)
    assert run(service, ["cat"]).embeddings.shape == (1, service.dimension)
    assert service.snapshot().queue_tokens == 0


def slow_down(service, monkeypatch, seconds):
    launch = service._runner.launch

    def slow(texts, output):
        time.sleep(seconds)
        return launch(texts, output)

    monkeypatch.setattr(service._runner, "launch", slow)


def test_a_request_that_takes_too_long_is_over(serve, monkeypatch):
    service = serve(timeout=0.3, batch_tokens=16)
    slow_down(service, monkeypatch, 0.1)
    before = service.snapshot().texts
    with pytest.raises(TimedOutError, match=r"0\.3 seconds"):
        run(service, [f"the cat food {i}" for i in range(50)])
    snapshot = service.snapshot()
    assert (snapshot.queue_tokens, snapshot.queued_texts, snapshot.requests) == (0, 0, 0)
    time.sleep(0.3)
    assert service.snapshot().texts - before < 25


@pytest.fixture
def stuck(monkeypatch):
    """``stuck(service)`` has its tokenizers' threads take the whole test."""
    gate = threading.Event()

    def stick(service):
        def tokenize(texts, prompt):
            assert gate.wait(60)
            raise TextError(0, "too late")

        monkeypatch.setattr(service._runner, "tokenize", tokenize)
        monkeypatch.setattr(service._runner, "tokens", tokenize)

    yield stick
    gate.set()


@pytest.mark.parametrize("ask", ["embed", "tokenize"])
def test_a_request_that_is_not_tokenised_in_time_is_over(serve, stuck, ask):
    service = serve(timeout=0.2, tokenizer_threads=1)
    stuck(service)

    async def run():
        many = (getattr(service, ask)(["cat"]) for _ in range(5))
        return await asyncio.wait_for(asyncio.gather(*many, return_exceptions=True), 20)

    assert [type(outcome) for outcome in asyncio.run(run())] == [TimedOutError] * 5
    snapshot = service.snapshot()
    assert (snapshot.queue_tokens, snapshot.requests) == (0, 0)


def test_what_is_only_to_be_tokenised_takes_its_room_as_well(serve, stuck):
    service = serve(queue_tokens=200, timeout=5, tokenizer_threads=1)
    sequences = asyncio.run(service.tokenize(["the cat food " * 500]))  # as much as all the room
    assert len(sequences[0]) > 1000
    stuck(service)

    async def run():
        waiting = asyncio.ensure_future(service.tokenize(["the cat food " * 500]))
        await asyncio.sleep(0)
        assert service.snapshot().queue_tokens == 200
        for ask in (service.tokenize, service.embed):
            with pytest.raises(OverloadedError):
                await ask(["cat"])
        waiting.cancel()
        await asyncio.wait((waiting,))

    asyncio.run(run())
    assert service.snapshot().queue_tokens == 0


def test_a_request_that_is_cancelled_frees_its_work(serve, monkeypatch):
    service = serve(batch_tokens=16)
    slow_down(service, monkeypatch, 0.05)

    async def ask():
        task = asyncio.ensure_future(service.embed([f"the cat food {i}" for i in range(500)]))
        await asyncio.sleep(0.3)
        before = service.snapshot()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return before, service.snapshot()

    before, after = asyncio.run(ask())
    assert before.queued_texts > 100
    assert (after.queue_tokens, after.queued_texts, after.requests) == (0, 0, 0)


def test_a_small_request_does_not_wait_for_a_large_one(serve, monkeypatch):
    service = serve(batch_tokens=64)
    slow_down(service, monkeypatch, 0.01)

    async def ask():
        large = asyncio.ensure_future(service.embed([f"the cat food {i}" for i in range(600)]))
        await asyncio.sleep(0.2)
        await service.embed(["cat"])
        assert not large.done()
        return await large

    assert len(asyncio.run(ask()).embeddings) == 600


def test_states_follow_its_life(serve, monkeypatch):
    service = serve(warm=False)
    assert service.snapshot().state is State.WARMING
    asyncio.run(service.probe())  # alive, though not ready
    with pytest.raises(UnavailableError, match="warming up") as caught:
        run(service, ["cat"])
    assert caught.value.retry_after == 1
    service.warm_up()
    assert service.snapshot().state is State.READY
    asyncio.run(service.probe())
    service.drain()
    assert service.snapshot().state is State.DRAINING
    assert len(run(service, ["cat"]).embeddings) == 1  # what came in is still served
    service.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        run(service, ["cat"])


def test_a_failed_model_turns_the_probe_red_and_green_again(serve, monkeypatch):
    service = serve()

    def broken(texts, output):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(service._runner, "launch", broken)
        with pytest.raises(UnavailableError, match="illegal memory access"):
            asyncio.run(service.probe())
        assert service.snapshot().state is State.FAILED
        assert "illegal memory access" in service.snapshot().reason
        with pytest.raises(UnavailableError, match="illegal memory access"):
            run(service, ["cat"])
    for _ in range(300):
        if service.snapshot().state is State.READY:
            break
        time.sleep(0.05)
    asyncio.run(service.probe())
    assert len(run(service, ["cat"]).embeddings) == 1


def test_probes_of_one_second_are_one(serve, monkeypatch):
    service = serve()

    async def ask():
        before = service.snapshot().batches
        await asyncio.gather(*(service.probe() for _ in range(50)))
        await service.probe()
        return service.snapshot().batches - before

    assert asyncio.run(ask()) == 1


def test_several_event_loops_may_ask(serve, model):
    service = serve()
    for _ in range(3):  # a loop each
        assert np.array_equal(run(service, TEXTS).embeddings, model.encode(TEXTS))


def test_several_event_loops_may_probe_at_once(serve, monkeypatch):
    service = serve()
    slow_down(service, monkeypatch, 0.2)
    with ThreadPoolExecutor(3) as threads:
        for probe in [threads.submit(asyncio.run, service.probe()) for _ in range(3)]:
            probe.result()


def test_an_engine_of_several_processes_is_refused(checkpoint):
    with (
        Causal2Vec.from_pretrained(checkpoint(INSTRUCTION), devices=["cpu"]) as engine,
        pytest.raises(BackendError, match="open it on one device"),
    ):
        EmbeddingService(engine)


@pytest.mark.parametrize("option", ["batch_tokens", "queue_tokens", "timeout", "tokenizer_threads"])
def test_numbers_must_be_positive(option):
    with pytest.raises(InputError, match=f"{option} is 0"):
        ServiceOptions(**{option: 0})
