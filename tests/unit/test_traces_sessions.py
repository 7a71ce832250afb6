"""Traces of sessions: turns that follow the end of others, and what their prompts share."""

from __future__ import annotations

from random import Random

import pytest
from builders import make_scenario

from helixsim.control.load import Arrival, OpenLoop
from helixsim.control.sessions import RecordedSession, Sessions
from helixsim.errors import TraceError
from helixsim.models.simulation import simulate
from helixsim.requests import SessionTurn, SharedPrefix, TraceRequest
from helixsim.scenario.load_generator import build_load_generator
from helixsim.scenario.workload_values import Workload
from helixsim.traces import Trace, read_lengths, read_trace, write_trace

SESSIONS = (
    '{"session_id": "c0", "timestamp": 0, "input_length": 100, "output_length": 60}\n'
    '{"session_id": "c1", "timestamp": 700, "input_length": 40, "output_length": 5}\n'
    '{"session_id": "c0", "delay": 500, "input_length": 200, "output_length": 5}\n'
    '{"session_id": "c0", "timestamp": null, "delay": 250, "input_length": 210, '
    '"output_length": 2, "priority": 3}\n'
)


@pytest.fixture
def read(tmp_path):
    def from_text(text, name="trace"):
        path = tmp_path / name
        path.write_text(text)
        return read_trace(path)

    return from_text


def times_and_turns(trace):
    return [
        (r.arrival_s, r.prompt_tokens, [(t.delay_s, t.prompt_tokens) for t in r.later_turns])
        for r in trace.requests
    ]


def test_a_turn_with_a_delay_follows_the_turn_before_it(read, tmp_path):
    trace = read(SESSIONS)
    assert times_and_turns(trace) == [(0.0, 100, [(0.5, 200), (0.25, 210)]), (0.7, 40, [])]
    assert trace.requests[0].later_turns[1].priority == 3
    assert (len(trace), trace.num_turns) == (2, 4)
    # Two gaps' worth of requests for each session.
    assert trace.rate_per_s == pytest.approx(2 / 0.7)
    assert read_lengths(tmp_path / "trace").pairs == ((100, 60), (200, 5), (210, 2), (40, 5))


def test_delays_in_csv_are_in_the_unit_of_the_times(read):
    text = (
        "arrived_at,num_prefill_tokens,num_decode_tokens,session_id,delay\n"
        "1,10,1,7,\n,20,1,7,4.5\n3,30,1,7,9\n2,40,1,,\n"
    )
    # A recorded time counts, whatever the delay was.
    assert times_and_turns(read(text)) == [(1.0, 10, [(4.5, 20)]), (2.0, 40, []), (3.0, 30, [])]


def test_beside_dates_a_delay_is_in_seconds(read):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens,session_id,delay\n"
        "2024-05-10 00:00:09,10,1,7,\n,20,1,7,4.5\n2024-05-10 00:00:04,5,1,8,\n"
    )
    assert times_and_turns(read(text)) == [(0.0, 5, []), (5.0, 10, [(4.5, 20)])]


def test_the_first_arrival_becomes_0_though_the_row_before_it_is_left_out(read):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens,session_id,delay\n"
        "2024-05-10 00:00:01,10,0,7,\n,20,1,7,2\n2024-05-10 00:00:09,5,1,8,\n"
    )
    assert times_and_turns(read(text)) == [(0.0, 20, []), (6.0, 5, [])]


def test_without_a_session_a_column_named_delay_means_another_thing(read):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens,delay\n1,10,1,slow\n"
    assert times_and_turns(read(text)) == [(1.0, 10, [])]


def test_a_turn_that_cannot_be_run_is_left_out_of_its_session(read):
    text = (
        '{"session_id": 1, "timestamp": 1000, "input_length": 9, "output_length": 0}\n'
        '{"session_id": 1, "delay": 500, "input_length": 10, "output_length": 1}\n'
        '{"session_id": 1, "delay": 100, "input_length": 0, "output_length": 1}\n'
        '{"session_id": 1, "delay": 200, "input_length": 20, "output_length": 1}\n'
    )
    trace = read(text)
    assert times_and_turns(trace) == [(1.5, 10, [(0.2, 20)])]
    assert trace.notes == (
        "trace: 2 of 4 rows left out: 1 without output tokens, 1 without prompt tokens",
    )


def test_the_first_turn_of_a_session_needs_a_time(read):
    text = SESSIONS + '{"session_id": "c9", "delay": 5, "input_length": 2, "output_length": 5}\n'
    with pytest.raises(TraceError, match="row 5: has no time, and no turn of session c9 is before"):
        read(text)


def test_turns_of_a_session_begin_with_the_turns_before(read):
    first, other = read(SESSIONS).requests
    second, third = first.later_turns
    # 160 tokens of prompt and answer are 10 blocks of 16, 205 are 12, 212 are 13.
    assert [len(turn.prefix.keys) for turn in (first, second, third)] == [10, 12, 13]
    assert second.prefix.keys[:10] == first.prefix.keys
    assert third.prefix.keys[:12] == second.prefix.keys
    assert other.prefix is None  # a session of one turn
    assert first.prefix.block_tokens == 16


def chat(chat_id, parent, prompt, output):
    return (
        f'{{"chat_id": {chat_id}, "parent_chat_id": {parent}, "timestamp": {chat_id}, "turn": 1, '
        f'"input_length": {prompt}, "output_length": {output}}}\n'
    )


def test_chats_begin_with_their_parents_as_far_as_their_length_allows(read):
    text = chat(1, -1, 32, 32) + chat(2, 1, 80, 16) + chat(3, 1, 48, 16) + chat(4, 1, 16, 16)
    trace = read(text + chat(5, -1, 64, 64))
    keys = [r.prefix and r.prefix.keys for r in trace.requests]
    assert [r.arrival_s for r in trace.requests] == [1.0, 2.0, 3.0, 4.0, 5.0]
    root, whole, without_answer, too_short, alone = keys
    assert whole[:4] == root and len(whole) == 6
    # Shorter than the prompt and the answer before: it holds the prompt at most.
    assert without_answer[:2] == root[:2] and not set(without_answer[2:]) & set(root)
    assert not set(too_short) & set(root)
    assert alone is None


def test_hashes_count_before_sessions(read):
    text = SESSIONS.replace('"output_length": 60', '"output_length": 60, "hash_ids": [4]')
    first, _ = read(text).requests
    assert first.prefix == SharedPrefix((4,), 512, 100)
    assert first.later_turns[0].prefix is None


@pytest.mark.parametrize(
    ("hashes", "prompt", "following", "extended"),
    [
        # 32 tokens of prompt and 16 of answer: three blocks, the third as the next prompt has it.
        ("[1, 2]", 64, "[1, 2, 3, 4]", SharedPrefix((1, 2, 3), 16)),
        ("[1, 2]", 64, "[1, 9, 3, 4]", SharedPrefix((1, 2), 16)),  # another text
        ("[1, 2]", 47, "[1, 2, 3]", SharedPrefix((1, 2), 16)),  # too short for the answer
        ("[1, 2]", 64, "[1, 2]", SharedPrefix((1, 2), 16)),  # not told
        ("[]", 64, "[1, 2, 3, 4]", None),
    ],
)
def test_hashes_of_the_next_turn_tell_of_the_answer(read, hashes, prompt, following, extended):
    def line(chat_id, parent, tokens, keys):
        return chat(chat_id, parent, tokens, 16).replace("}", f', "hash_ids": {keys}}}')

    trace = read(line(1, -1, 32, hashes) + line(2, 1, prompt, following))
    assert trace.requests[0].prefix == extended


def test_a_long_block_that_changes_with_the_answer_is_kept(read):
    text = SESSIONS.replace('"output_length": 60', '"output_length": 60, "hash_ids": [4]')
    same = text.replace('"input_length": 200', '"input_length": 200, "hash_ids": [4]')
    first, _ = read(same).requests
    assert first.prefix == SharedPrefix((4,), 512, 160)
    other = text.replace('"input_length": 200', '"input_length": 200, "hash_ids": [5]')
    first, _ = read(other).requests
    assert first.prefix == SharedPrefix((4,), 512, 100)


def test_sessions_are_written_and_read_back(tmp_path, read):
    later = (SessionTurn(0.1, 30, 2, SharedPrefix((3,), 16), -1), SessionTurn(1 / 3, 40, 2))
    trace = Trace((TraceRequest(0.0, 20, 4, later_turns=later), TraceRequest(1.0, 10, 4)))
    write_trace(trace, tmp_path / "trace.csv")
    assert (tmp_path / "trace.csv").read_text().splitlines() == [
        "arrived_at,num_prefill_tokens,num_decode_tokens,hash_ids,block_tokens,priority,"
        "session_id,delay",
        "0.0,20,4,,,,0,",
        ",30,2,3,16,-1,0,0.1",
        ",40,2,,,,0,0.3333333333333333",
        "1.0,10,4,,,,,",
    ]
    assert read_trace(tmp_path / "trace.csv") == trace


def test_changes_of_a_trace_keep_its_sessions():
    later = (SessionTurn(5.0, 30, 2), SessionTurn(5.0, 3000, 2), SessionTurn(5.0, 40, 2))
    trace = Trace((TraceRequest(2.0, 20, 4, later_turns=later), TraceRequest(8.0, 9, 900)))
    assert trace.scaled(2.0).requests[0] == TraceRequest(1.0, 20, 4, later_turns=later)
    assert trace.from_first().requests[0].later_turns == later
    (limited,) = trace.limited(max_prompt_tokens=100, max_output_tokens=100).requests
    assert limited.later_turns == later[:1]  # the session ends before a turn that is too long


def test_repetitions_share_nothing_with_one_another():
    one = SharedPrefix((7,), 16)
    request = TraceRequest(0.0, 20, 4, one, later_turns=(SessionTurn(1.0, 20, 4, one),))
    first, second = Trace((request,)).repeated(2, 10.0).requests
    assert first == request
    own = SharedPrefix(((1, 7),), 16)
    assert second == TraceRequest(10.0, 20, 4, own, later_turns=(SessionTurn(1.0, 20, 4, own),))


def test_a_session_by_hand():
    later = (SessionTurn(0.5, 200, 5, SharedPrefix((1,), 16), 3), SessionTurn(2.0, 210, 2))
    sessions = [RecordedSession(Arrival(1.0, 100, 60), later), RecordedSession(Arrival(2.0, 5, 5))]
    load = Sessions(sessions, end_s=10.0)
    assert list(load.opening()) == []
    assert list(load.later()) == [Arrival(1.0, 100, 60), Arrival(2.0, 5, 5)]
    assert load.after_prompt(3.0, None, 0) is None
    assert load.after_end(4.0, None, 1) is None
    assert load.after_end(5.0, None, 0) == Arrival(
        5.5, 200, 5, SharedPrefix((1,), 16), 3, follows=0
    )
    assert load.after_end(8.5, None, 2) is None  # beyond the end of the run
    assert load.after_end(9.0, None, None) is None


def test_a_workload_has_sessions_only_where_its_trace_has():
    def load_generator_of(*requests):
        workload = Workload(mode="online", trace=Trace(requests))
        scenario = make_scenario({"a": (0, 1)}, workload=workload, duration_s=50.0)
        return build_load_generator(scenario, Random(3), 20.0)

    assert isinstance(load_generator_of(TraceRequest(0.0, 5, 2)), OpenLoop)
    later = (SessionTurn(1.0, 9, 2),)
    sessions = load_generator_of(
        TraceRequest(0.0, 5, 2, later_turns=later), TraceRequest(51.0, 5, 2, later_turns=later)
    )
    assert list(sessions.later()) == [Arrival(20.0, 5, 2)]
    assert sessions.after_end(30.0, None, 0) == Arrival(31.0, 9, 2, follows=0)


def test_a_later_turn_arrives_after_the_end_of_the_turn_before_it():
    later = (SessionTurn(4.0, 6, 2), SessionTurn(0.0, 7, 2))
    workload = Workload(mode="online", trace=Trace((TraceRequest(0.0, 5, 3, later_turns=later),)))
    scenario = make_scenario({"a": (0, 1)}, workload=workload, duration_s=90.0, drain=True)
    requests = simulate(scenario).requests
    assert list(requests.prompt_tokens) == [5, 6, 7]
    ends, arrivals = list(requests.end_s), list(requests.arrival_s)
    assert arrivals[1:] == [ends[0] + 4.0, ends[1]]
