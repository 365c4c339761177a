"""A block that does not end is ended; timers of others go on."""

import itertools
import signal
import threading
import time

import pytest

from finetune_trainer.data.deadline import TookTooLong, at_most


def test_a_loop_without_end_ends():
    begun = time.monotonic()
    with pytest.raises(TookTooLong), at_most(0.1):
        sum(1 for _ in itertools.count())
    assert time.monotonic() - begun < 5


def test_a_block_in_time_is_left_alone():
    with at_most(0.05):
        pass
    time.sleep(0.1)


def test_a_timer_of_somebody_else_goes_on():
    heard = []
    handler = signal.signal(signal.SIGALRM, lambda *_: heard.append(True))
    before = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with at_most(5):
            time.sleep(0.05)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 0.2
        time.sleep(0.3)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)
    assert heard == [True]


def test_other_threads_have_no_deadline():
    ended = []

    def work():
        with at_most(0.01):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]
