"""A request for which the engine fails ends alone: the others of its batch go on as if without."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from engine_driver import DEVICE, Job, make_specs, prompts, serve
from failing_engines import MARK, POISON, CountingEngine, is_poison
from hypothesis import given, settings
from hypothesis import strategies as st
from live import PATIENCE_S, Answer, attacker, check_all_end_right, running, submit, wait_for
from looping_driver import Served
from tiny_scenario import write_tiny_scenario

from helixreal.engines import make_engine
from helixreal.engines.engine import GREEDY, Row, RowFailure
from helixreal.engines.failures import EngineLostError, ends_engine
from helixreal.inventory import NodeEntry
from helixreal.net import encoding, messages
from helixreal.serving.frontend import Failed, Finished, Refused
from helixreal.worker.step_run import MAX_RERUNS, PassRows, StepRun
from helixsim.control.kv_cache import reserve
from helixsim.physics.engine import EngineCosts

HERE = Path(__file__).parent
NUM_OUTPUT = 16


# -- one step --------------------------------------------------------------------------------------


def rows_of(requests, engine, num_tokens=3):
    rows = {}
    for place, request in enumerate(requests):
        rows[place] = Row(request, 0, num_tokens, [1] * num_tokens)
        assert reserve(engine.kv, request, num_tokens)
    return rows


def one_pass(rows):
    return PassRows(rows, [(0, 2, list(rows.values()))])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 256), st.sets(st.integers(0, 255), max_size=3))
def test_the_requests_that_fail_are_found_and_no_others(num_requests, poison):
    poison = {each for each in poison if each < num_requests}
    engine = CountingEngine(lambda row: row.request in poison)
    rows = rows_of(range(num_requests), engine)
    outcome = StepRun(engine).run(one_pass(rows))
    assert outcome.failures == dict.fromkeys(poison, "ValueError: poison")
    assert {row.request for row in rows.values() if row.payload != [1, 1, 1]} == (
        set(range(num_requests)) - poison
    )
    assert len(engine.batches) <= 1 + MAX_RERUNS
    if not poison:
        assert len(engine.batches) == 1


def test_an_engine_that_fails_always_is_not_asked_for_ever():
    engine = CountingEngine(lambda row: True)
    outcome = StepRun(engine, max_reruns=10).run(one_pass(rows_of(range(100), engine)))
    assert len(outcome.failures) == 100
    assert len(engine.batches) == 11


def test_chunks_of_a_request_stay_together_and_in_order():
    engine = CountingEngine(lambda row: row.request == "b")
    rows = rows_of(["a", "b", "a", "b", "c"], engine)
    outcome = StepRun(engine).run(one_pass(rows))
    assert list(outcome.failures) == ["b"]
    assert engine.batches[-3:] == [["b", "b", "c"], ["b", "b"], ["c"]]


def test_a_request_that_has_failed_is_not_in_later_passes_or_segments():
    engine = CountingEngine(lambda row: row.request == "a")
    rows = rows_of(["a", "b"], engine)
    run = StepRun(engine)
    both = list(rows.values())
    assert run.run(PassRows(rows, [(0, 1, both), (1, 2, both)])).failures
    assert not run.run(one_pass(rows)).failures
    assert engine.batches == [["a", "b"], ["a"], ["b"], ["b"], ["b"]]


def test_a_row_may_fail_alone_without_running_the_others_again():
    class Engine(CountingEngine):
        def run(self, rows, start_layer, end_layer):
            tokens = super().run(rows, start_layer, end_layer)
            tokens[1] = RowFailure("no")
            return tokens

    engine = Engine()
    rows = rows_of(range(3), engine)
    assert StepRun(engine).run(one_pass(rows)).failures == {1: "no"}
    assert [rows[0].payload, rows[2].payload] == [3, 3]
    assert len(engine.batches) == 1


def test_a_wrong_number_of_results_is_an_error_of_the_engine():
    class Engine(CountingEngine):
        def run(self, rows, start_layer, end_layer):
            return super().run(rows, start_layer, end_layer)[1:]

    engine = Engine()
    outcome = StepRun(engine).run(one_pass(rows_of(["a"], engine)))
    assert outcome.failures == {"a": "ValueError: the engine returned 0 results for 1 rows"}


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        EngineLostError("a rank has ended"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        type("OutOfMemoryError", (RuntimeError,), {})("tried to allocate 2 GiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_ends_the_engine_is_not_tried_again(error):
    engine = CountingEngine(lambda row: row.request == 1, error=error)
    outcome = StepRun(engine).run(one_pass(rows_of(range(4), engine)))
    assert outcome.fatal is error
    assert len(engine.batches) == 1


def test_errors_of_a_request_do_not_end_the_engine():
    for error in (IndexError("index out of range in self"), RuntimeError("shape"), ValueError()):
        assert not ends_engine(error)


# -- through a node's executor ---------------------------------------------------------------------


class Heard(Served):
    """Notes failures and restarts, too."""

    def __init__(self, engine):
        super().__init__(engine, EngineCosts(max_num_batched_tokens=1000), 2)
        self.failures, self.restarts = {}, []

    def failed(self, keys, reason):
        self.failures |= dict.fromkeys(keys, reason)

    def out_of_blocks(self, keys):
        self.restarts += keys


def test_neighbours_keep_their_tokens_and_blocks_are_free_again():
    engine = CountingEngine(is_poison)
    heard = Heard(engine)
    for key in range(20):
        heard.ask(key, [POISON if key in (3, 11) else 100 + key] * 5, 6, GREEDY)
    heard.run()
    assert heard.failures == dict.fromkeys((3, 11), "ValueError: poison")
    assert {key: t for key, t in heard.tokens.items() if t} == {
        key: list(range(5, 11)) for key in range(20) if key not in (3, 11)
    }
    assert engine.kv.num_used == 0
    assert heard.executor.sequences == {}


def test_who_shares_blocks_of_a_failed_request_begins_again():
    common = list(range(100, 132))
    engine = CountingEngine(lambda row: 7 in row.payload)
    heard = Heard(engine)
    heard.ask(1, [*common, 7], 4, GREEDY)
    heard.ask(2, [*common, 8], 4, GREEDY)
    heard.ask(3, [*common, 7], 4, GREEDY, at=5.0)
    heard.ask(4, [9] * 20, 4, GREEDY)
    heard.run()
    assert set(heard.failures) == {1, 3}
    assert heard.restarts == [2]
    assert heard.tokens == {1: [], 2: [], 3: [], 4: [20, 21, 22, 23]}
    heard.ask(5, [*common, 8], 4, GREEDY, at=50.0)
    heard.run()
    assert heard.scheduler.kv.num_hit_tokens == 32, "only what request 2 had found"
    assert heard.tokens[5] == [33, 34, 35, 36]


def test_an_engine_that_is_lost_ends_the_executor():
    heard = Heard(CountingEngine(is_poison, error=MemoryError("no room")))
    heard.ask(1, [POISON, 1], 4, GREEDY)
    with pytest.raises(EngineLostError, match="the engine has failed: MemoryError: no room"):
        heard.run()


# -- through a real cluster ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A tiny model, with prompts and what one engine alone makes of them."""
    from tiny_llama import write_tiny_llama

    folder = write_tiny_llama(tmp_path_factory.mktemp("model"))
    engine = make_engine("torch", make_specs(folder, [(0, 8)])[0])
    lengths = [3 + 7 * number % 40 for number in range(12)]
    jobs = [Job(each, NUM_OUTPUT, route=((0, 0, 8),)) for each in prompts(lengths)]
    serve([engine], jobs)
    engine.close()
    return folder, [(job.prompt, job.tokens) for job in jobs]


@pytest.fixture(scope="module")
def not_a_number(clean):
    """A token of which the prompts and their answers know nothing, and whose embedding is NaN."""
    from safetensors.torch import load_file, save_file

    folder, expected = clean
    used = {token for prompt, tokens in expected for token in (*prompt, *tokens)}
    token = min(set(range(1, 256)) - used)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return token


@pytest.fixture
def model(clean):
    return clean[0]


@pytest.fixture
def innocent(clean):
    """Requests, with the tokens that they must get."""
    return [Answer(prompt, NUM_OUTPUT, tokens) for prompt, tokens in clean[1]]


def ask_between(live, innocent, guilty):
    """Submit requests, those of `guilty` in between."""
    for place, answer in enumerate(innocent):
        submit(live, answer)
        if place < len(guilty):
            submit(live, guilty[place])


def ends_of(answers):
    for answer in answers:
        assert answer.is_over.wait(PATIENCE_S), "a request hangs"
        assert not answer.tokens
    return [end for answer in answers for end in answer.ends]


@pytest.mark.torch
def test_a_real_engine_goes_on_as_if_a_step_had_not_failed(model, clean, not_a_number):
    made = make_engine("torch", make_specs(model, [(0, 8)])[0])
    ids = {key: list(prompt) for key, (prompt, _) in enumerate(clean[1])}
    ids |= {"nan": [7, not_a_number]}
    if DEVICE == "cpu":  # a GPU is lost with such an id, which workers do not give to an engine
        ids |= {"outside": [5, 300, 6]}
    order = sorted(ids, key=lambda key: str(key)[-1])  # the bad ones between the others
    answers, failures = {key: [] for key in ids}, {}
    for _ in range(3):
        rows = {}
        for key in (key for key in order if key not in failures):
            position = len(ids[key]) - 1 if answers[key] else 0
            rows[key] = Row(key, position, len(ids[key]) - position, ids[key][position:])
            assert reserve(made.kv, key, len(ids[key]))
        failures |= StepRun(made).run(PassRows(rows, [(0, 8, list(rows.values()))])).failures
        for key in rows.keys() - failures.keys():
            ids[key].append(rows[key].payload)
            answers[key].append(rows[key].payload)
    made.close()
    assert failures.pop("nan") == "the model's logits are not numbers (NaN)"
    if DEVICE == "cpu":
        assert failures.pop("outside").startswith("IndexError: index")
    assert not failures
    assert [answers[key] for key in range(12)] == [tokens[:3] for _, tokens in clean[1]]


@pytest.mark.torch
@pytest.mark.parametrize("node", ["paper", "vllm"])
def test_bad_requests_in_a_cluster(model, innocent, not_a_number, tmp_path, monkeypatch, node):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}", prepend=os.pathsep)
    scenario = write_tiny_scenario(tmp_path, scheduler={"node": node}, physics="calibrated")
    entry = NodeEntry(
        engine="failing_engines:poisoned_torch", model=str(model), kv_memory_bytes=16 << 20
    )
    with running(scenario, entry) as (live, _, cluster):
        outside, poison, nan = (
            [Answer(prompt, 16) for prompt in each]
            for each in (
                [[5, 256], [5, -1, 7], [2**40], []],
                [[POISON, 5]] * 3,
                [[7, not_a_number, 9], [not_a_number]],
            )
        )
        ask_between(live, innocent, [*outside, *poison, *nan])
        check_all_end_right(innocent)
        assert cluster.coordinator.num_restarts == 0
        assert [end.message for end in ends_of(outside)] == [
            "prompt: token 1 has the id 256, but the model's token ids are 0 to 255",
            "prompt: token 1 has the id -1, but the model's token ids are 0 to 255",
            f"prompt: token 0 has the id {2**40}, but the model's token ids are 0 to 255",
            "the prompt has no tokens",
        ]
        assert all(isinstance(end, Refused) for answer in outside for end in answer.ends)
        assert {end.message.partition(": ")[2] for end in ends_of(poison)} == {
            "IndexError: index out of range in self"
        }
        assert ends_of(nan) == [Failed("n1: the model's logits are not numbers (NaN)")] * 2


@pytest.mark.torch
def test_a_worker_checks_token_ids_again(model, innocent, tmp_path):
    scenario = write_tiny_scenario(tmp_path)
    entry = NodeEntry(engine="torch", model=str(model), kv_memory_bytes=16 << 20)
    with running(scenario, entry) as (live, _, _):
        live._intake.vocabulary = None  # as if the coordinator had not known it
        outside = [Answer([5, 256], 16), Answer([300], 16)]
        ask_between(live, innocent, outside)
        check_all_end_right(innocent)
        for end in ends_of(outside):
            assert isinstance(end, Failed)
            assert end.message.endswith("but the model's token ids are 0 to 255")


@pytest.mark.torch
@pytest.mark.parametrize("lost", ["run", "pack"])
def test_a_worker_whose_device_is_lost_leaves_at_once(
    model, innocent, tmp_path, monkeypatch, caplog, lost
):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE.parents[1]}", prepend=os.pathsep)
    monkeypatch.setenv(MARK, str(tmp_path / "lost"))
    scenario = write_tiny_scenario(tmp_path, scheduler={"policy": "swarm"})
    entry = NodeEntry(
        engine="failing_engines:lost_torch",
        model=str(model),
        kv_memory_bytes=16 << 20,
        options={"lost": lost},
    )
    with caplog.at_level(logging.ERROR), running(scenario, entry) as (live, _, cluster):
        poison = [Answer([POISON, 5], 2)]
        ask_between(live, innocent, poison)
        check_all_end_right(innocent)
        assert poison[0].is_over.wait(PATIENCE_S)
        assert poison[0].ends == [Finished("length")], "it has another way"
        assert cluster.coordinator.num_restarts > 0
        assert sorted(live.load().nodes_up.values()) == [False, True, True]
    assert (
        " leaves: the engine has failed: RuntimeError: CUDA error: device-side assert triggered"
        in caplog.text
    )


def test_a_message_with_too_few_bytes_fails_its_requests(tmp_path):
    scenario = write_tiny_scenario(tmp_path, {"n0": [0, 8]})
    with running(scenario, NodeEntry()) as (live, _, cluster):
        first, second = Answer([1] * 5, 400), Answer([1] * 9, 4)
        submit(live, first)
        wait_for(lambda: first.tokens, "a token")
        decode = messages.Pass(1, 5, 1, False, True)  # of the first request of all
        with attacker(cluster.membership.workers[0].address) as socket:
            work = messages.Work(1, 0, 0.0, [decode], [], 1)
            socket.send_multipart(encoding.encode(work, [bytes(3)]))
        assert first.is_over.wait(PATIENCE_S)
        assert first.ends == [Failed("n0: the frame of token ids has a wrong size")]
        submit(live, second)
        assert second.is_over.wait(PATIENCE_S)
        assert second.ends == [Finished("length")]
