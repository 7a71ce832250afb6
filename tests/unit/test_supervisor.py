"""When processes that end are started again."""

from __future__ import annotations

from helixreal.local import is_own_address
from helixreal.supervisor import Restarts, SupervisedProcess, described


def test_waits_double_up_to_a_limit_and_end_with_too_many_starts():
    restarts = Restarts(most=6, within_s=60.0)
    assert [restarts.wait_s(float(at)) for at in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert restarts.wait_s(6.0) is None


def test_ends_of_long_ago_do_not_count():
    restarts = Restarts(most=1, within_s=60.0)
    assert restarts.wait_s(0.0) == 0.5
    assert restarts.wait_s(61.0) == 0.5
    assert restarts.wait_s(62.0) is None


def test_a_process_that_ends_with_a_fault_again_and_again_stays_ended(caplog):
    # It has no coordinator: an error in its arguments, at once.
    process = SupervisedProcess("the worker", ["worker", "--node", "a"], Restarts(most=1))
    assert process.keep_running() == 2
    process.end()
    ended = "the worker has ended with exit code 2"
    assert caplog.messages == [
        f"{ended}: it is started again in 0.5 s (1 of 1 within 60 s)",
        f"{ended}, 2 times within 60 s: it is not started again",
    ]


def test_exit_codes_in_words():
    assert described(3) == "has ended with exit code 3"
    assert described(-9) == "was ended by SIGKILL"


def test_addresses_of_this_machine_are_told_from_others():
    assert is_own_address("tcp://127.0.0.1:0")
    assert is_own_address("tcp://localhost:7000")
    assert not is_own_address("tcp://192.0.2.77:0")
    assert not is_own_address("tcp://no.such.host.invalid:0")
