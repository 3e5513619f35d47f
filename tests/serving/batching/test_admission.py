"""What is let in, and what is said to the rest."""

import pytest

from c2v_engine.errors import InputError
from c2v_engine.serving.batching.admission import Admission, Speed
from c2v_engine.serving.refusals import OverloadedError, RequestTooLargeError


def test_a_request_goes_in_while_there_is_room():
    admission = Admission(100, 60, 10)
    admission.check(40, 60)
    with pytest.raises(OverloadedError) as caught:
        admission.check(41, 60)
    assert caught.value.retry_after == 1


def test_what_never_fits_is_another_mistake():
    with pytest.raises(RequestTooLargeError, match="about 101 tokens"):
        Admission(100, 60, 10).check(101, 0)
    assert issubclass(RequestTooLargeError, InputError)


def test_what_could_not_be_done_in_time_is_refused_at_once():
    admission = Admission(10_000, 10, 10)
    admission.speed.add(100, 0.0, 1.0)
    admission.check(1, 500)
    with pytest.raises(OverloadedError) as caught:
        admission.check(1, 501)
    assert caught.value.retry_after == 3


@pytest.mark.parametrize(("waiting", "seconds"), [(0, 1), (1000, 5), (10**6, 60)])
def test_it_is_worth_asking_again_when_half_is_done(waiting, seconds):
    admission = Admission(10_000, 5, 10)
    admission.speed.add(100, 0.0, 1.0)
    assert admission.retry_after(waiting) == seconds


def test_speed_is_that_of_full_batches_and_forgets():
    speed = Speed(100)
    speed.add(10, 0.0, 10.0)
    assert speed.tokens_per_second is None
    speed.add(100, 10.0, 11.0)
    assert speed.tokens_per_second == pytest.approx(100)
    for second in range(11, 61):
        speed.add(400, float(second), second + 1.0)
    # Ten half-lives: a thousandth of what was before is left.
    assert speed.tokens_per_second == pytest.approx(400, rel=1e-2)


def test_batches_that_run_together_do_not_count_twice():
    speed = Speed(100)
    speed.add(100, 0.0, 1.0)
    speed.add(100, 0.5, 2.0)
    assert speed.tokens_per_second == pytest.approx(100, rel=1e-6)
