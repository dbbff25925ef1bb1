from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from rtdetrv4.training.interrupt import Interrupt


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_wish(number, caplog):
    with Interrupt() as interrupt:
        assert not interrupt.requested
        send(number)
        assert interrupt.requested
    assert "Stopping after this step" in caplog.text


def test_a_second_ctrl_c_stops_at_once():
    with Interrupt():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_sigterm_after_ctrl_c_is_torchrun_and_no_second_wish():
    with Interrupt() as interrupt:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert interrupt.requested


def test_work_that_may_be_dropped_is_stopped_by_the_first_signal():
    with Interrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt), interrupt.raising():
            send(signal.SIGTERM)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt), interrupt.raising():
            pytest.fail("the wish came before, so this must not begin")


def test_handlers_are_given_back():
    # Python has no handler for Ctrl-C where a shell has started the tests in the background.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is not before[0]
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, outside)


def test_outside_the_main_thread_signals_keep_their_effect():
    states = []

    def enter():
        with Interrupt() as interrupt:
            states.append(interrupt.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert states == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only a forked process inherits handlers")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_ignores_ctrl_c_and_dies_of_sigterm():
    with Interrupt():
        child = os.fork()
        if child == 0:  # no assertion and no exception must leave the child
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM
