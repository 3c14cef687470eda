"""Prefetching changes when things are read, and nothing else."""

import threading
import time

import jax
import numpy as np
import pytest

from mvp_jax.data.loading.prefetch import prefetch


def test_items_come_in_their_order_and_on_the_device():
    got = list(prefetch(({"x": np.full((2, 3), i)} for i in range(7)), ahead=2))
    assert [int(g["x"][1, 2]) for g in got] == list(range(7))
    assert all(isinstance(g["x"], jax.Array) for g in got)
    assert list(prefetch(range(4), place=lambda i: i * i)) == [0, 1, 4, 9]
    assert list(prefetch([])) == []


def test_reading_goes_on_while_the_consumer_works_but_only_so_far_ahead():
    read = []

    def items():
        for i in range(20):
            read.append((i, threading.current_thread().name))
            yield i

    found = prefetch(items(), place=lambda i: i, ahead=3)
    assert next(found) == 0
    deadline = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    # One given out, three waiting or in the thread's hand.
    assert len(read) == 4
    assert {name for _, name in read} == {"prefetch_0"}
    assert list(found) == list(range(1, 20))


def test_errors_arrive_where_the_items_are_used():
    def items():
        yield 1
        raise OSError("the disk is gone")

    found = prefetch(items(), place=lambda i: i)
    assert next(found) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)
    with pytest.raises(ZeroDivisionError):
        list(prefetch([1, 0], place=lambda i: 1 // i))
    with pytest.raises(ValueError, match="ahead is 0"):
        prefetch([1], ahead=0)


def test_a_consumer_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    found = prefetch(iter(range(10**9)), place=lambda i: i)
    assert [next(found), next(found)] == [0, 1]
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
