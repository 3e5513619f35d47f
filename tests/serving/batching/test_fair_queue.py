"""Order and size of batches: oldest first, small before the rest of large, nobody starves."""

import math
import random

import pytest
from queued import request

from c2v_engine.serving.batching.fair_queue import FairQueue


@pytest.fixture
def queue():
    return FairQueue()


def push(queue, *tokens, **options):
    ahead = options.pop("ahead", False)
    ticket, texts = request(*tokens, **options)
    queue.push(texts, ahead=ahead)
    return ticket


def taken(queue, budget):
    return [(text.ticket, text.row) for text in queue.take(budget)]


def test_requests_of_one_size_come_in_the_order_of_their_arrival(queue):
    tickets = [push(queue, 10) for _ in range(7)]
    order = [ticket for _ in range(3) for ticket, _ in taken(queue, 30)]
    assert order == tickets


def test_a_batch_is_filled_up_to_the_budget_and_no_further(queue):
    push(queue, *[10] * 5)
    assert [len(queue.take(30)) for _ in range(3)] == [3, 2, 0]


def test_encoder_tokens_count_against_the_budget_as_well(queue):
    _, texts = request(2, 2, 2)
    for text in texts:
        object.__setattr__(text.ready.text, "windows", (text.ready.text.token_ids.repeat(5),))
    queue.push(texts)
    assert queue.tokens == 30
    assert [len(queue.take(20)) for _ in range(2)] == [2, 1]


def test_a_text_over_the_budget_goes_alone(queue):
    push(queue, 100, 5)
    assert [len(queue.take(30)) for _ in range(2)] == [1, 1]


def test_a_small_request_overtakes_the_rest_of_a_large_one(queue):
    large = push(queue, *[10] * 100)
    assert {ticket for ticket, _ in taken(queue, 50)} == {large}
    small = push(queue, 10)
    assert (small, 0) in taken(queue, 50)


def test_no_stream_of_small_requests_holds_a_large_one_up(queue):
    """With as much coming as is taken, the large one gets its share as any other."""
    large = push(queue, *[10] * 20)
    batches = 0
    while large.waiting_texts:
        for _ in range(5):
            push(queue, 10)
        assert queue.take(50)
        batches += 1
    # Requests that come with each batch stand five to one.
    assert batches < 20 * 6


def test_estimates_that_were_too_high_do_not_stop_the_clock(queue):
    """Else it would stand the longer the server runs, and large ones would wait for ever."""
    for given_up in [False, True] * 200:
        ticket, texts = request(*[10] * 4)
        ticket.reserved = 1000
        queue.push(texts[:2])
        assert len(queue.take(50)) == 2
        ticket.reserved = 0
        if not given_up:
            queue.push(texts[2:])
            assert len(queue.take(50)) == 2
        ticket.over = True
        queue.drop(ticket)
    test_no_stream_of_small_requests_holds_a_large_one_up(queue)


def test_requests_are_done_one_after_the_other_and_not_all_at_the_end(queue):
    tickets = [push(queue, *[10] * 4) for _ in range(5)]
    order = [ticket for _ in range(20) for ticket, _ in taken(queue, 10)]
    assert order == [ticket for ticket in tickets for _ in range(4)]


def test_of_two_that_came_together_the_smaller_is_done_first(queue):
    larger, smaller = push(queue, *[10] * 5), push(queue, *[10] * 3)
    order = [ticket for _ in range(8) for ticket, _ in taken(queue, 10)]
    assert order == [smaller] * 3 + [larger] * 5


def test_a_request_that_comes_in_parts_has_the_place_of_the_whole(queue):
    first, texts = request(*[10] * 6)
    first.reserved = 30  # estimated for the half that is not tokenised yet
    queue.push(texts[:3])
    other = push(queue, *[10] * 5)
    first.reserved = 0
    queue.push(texts[3:])
    order = [ticket for _ in range(11) for ticket, _ in taken(queue, 10)]
    assert order == [other] * 5 + [first] * 6


def test_an_estimate_that_was_too_low_gains_nothing_for_the_rest(queue):
    first, texts = request(*[10] * 6)
    queue.push(texts[:3])
    other = push(queue, *[10] * 5)
    queue.push(texts[3:])
    order = [ticket for _ in range(11) for ticket, _ in taken(queue, 10)]
    assert order == [first] * 3 + [other] * 5 + [first] * 3


@pytest.mark.parametrize("seed", range(5))
def test_no_request_is_done_later_than_by_even_division(queue, seed):
    """The theorem of the fair sojourn protocol, for batches of one token."""
    choose = random.Random(seed)
    sizes: dict[object, int] = {}
    left: dict[object, float] = {}
    arrivals = sorted((choose.randint(0, 60), choose.randint(1, 12)) for _ in range(30))
    done_at, even_at, moment = {}, {}, 0
    waiting = list(arrivals)
    while waiting or left or len(done_at) < len(arrivals):
        while waiting and waiting[0][0] <= moment:
            size = waiting.pop(0)[1]
            ticket = push(queue, *[1] * size)
            sizes[ticket] = left[ticket] = size
        share = 1.0  # what the even server does until the next moment
        while share > 1e-9 and left:
            step = min(share / len(left), min(left.values()))
            left = {ticket: rest - step for ticket, rest in left.items()}
            share -= step * len(left)
            for ticket in [ticket for ticket, rest in left.items() if rest < 1e-9]:
                even_at[ticket] = moment + 1 - share
                del left[ticket]
        moment += 1
        for text in queue.take(1):
            sizes[text.ticket] -= 1
            if not sizes[text.ticket]:
                done_at[text.ticket] = moment
    # A moment is not divided here: what ends within it ends with it.
    assert all(done_at[ticket] <= math.ceil(even_at[ticket] - 1e-6) for ticket in done_at)


def test_what_still_fits_goes_beside_the_first(queue):
    push(queue, 20)
    big = push(queue, 25)
    small = push(queue, 9)
    assert small in [ticket for ticket, _ in taken(queue, 30)]
    assert [ticket for ticket, _ in taken(queue, 30)] == [big]


def test_a_large_text_is_first_in_the_next_batch_however_many_small_ones_come(queue):
    push(queue, 20)
    big = push(queue, 25)
    for _ in range(100):
        push(queue, 30)
    queue.take(30)
    assert [ticket for ticket, _ in taken(queue, 30)] == [big]


def test_what_goes_ahead_is_first(queue):
    push(queue, *[10] * 50)
    queue.take(100)
    probe = push(queue, 10, ahead=True)
    assert taken(queue, 10) == [(probe, 0)]


def test_texts_of_one_kind_alone_make_a_batch(queue):
    a = push(queue, 10, keep=4)
    b = push(queue, 10, keep=2)
    c = push(queue, 10, prompt=(1, 2))
    d = push(queue, 10, keep=4)
    batches = [[ticket for ticket, _ in taken(queue, 100)] for _ in range(4)]
    assert batches == [[a, d], [b], [c], []]


def test_what_nobody_waits_for_is_passed_by(queue):
    gone, kept = push(queue, 10, 10), push(queue, 10)
    gone.over = True
    queue.drop(gone)
    assert (queue.tokens, queue.texts) == (10, 1)
    assert taken(queue, 100) == [(kept, 0)]
    assert (queue.tokens, queue.texts) == (0, 0)
    assert taken(queue, 100) == []


@pytest.mark.parametrize("seed", range(5))
def test_all_that_is_pushed_is_taken_once(queue, seed):
    choose = random.Random(seed)
    expected, found = set(), []
    for _ in range(200):
        sizes = [choose.randint(1, 40) for _ in range(choose.choice([1, 1, 1, 30]))]
        ticket = push(queue, *sizes, keep=choose.choice([2, 4]))
        expected |= {(ticket, row) for row in range(len(sizes))}
        if choose.random() < 0.1:
            ticket.over = True
            queue.drop(ticket)
            expected = {(t, row) for t, row in expected if t is not ticket}
        if choose.random() < 0.3:
            batch = queue.take(100)
            assert sum(text.ready.tokens for text in batch) <= 100
            found += [(text.ticket, text.row) for text in batch]
        assert queue.texts == sum(not t.over for t, _ in expected) - sum(
            not t.over for t, _ in found
        )
    while batch := queue.take(100):
        found += [(text.ticket, text.row) for text in batch]
    assert len(found) == len(set(found))
    assert expected <= set(found)
    assert (queue.tokens, queue.texts) == (0, 0)
