"""The clock of the stages: inner stages count for themselves, threads for themselves."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from gguf_mla.files import clock


@pytest.fixture(autouse=True)
def at_zero() -> None:
    clock.take()


def test_a_stage_inside_another_is_not_counted_twice() -> None:
    begin = time.perf_counter()
    with clock.stage("decode"):
        time.sleep(0.02)
        with clock.stage("read"):
            time.sleep(0.05)
        time.sleep(0.01)
    seconds = clock.take()
    assert seconds["read"] >= 0.05
    assert seconds["decode"] >= 0.03
    assert sum(seconds.values()) <= time.perf_counter() - begin
    assert clock.take() == dict.fromkeys(clock.STAGES, 0.0)


def test_a_stage_that_fails_is_counted() -> None:
    with contextlib.suppress(KeyError), clock.stage("write"):
        time.sleep(0.01)
        raise KeyError
    assert clock.take()["write"] >= 0.01


def test_each_thread_has_its_own_seconds() -> None:
    seen = []

    def work() -> None:
        with clock.stage("encode"):
            time.sleep(0.01)
        seen.append(clock.take())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0]["encode"] >= 0.01
    assert clock.take()["encode"] == 0.0
