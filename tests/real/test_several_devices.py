"""A node with several devices: its layers are divided among ranks, its tokens are those of one."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from engine_driver import DEVICE, Job, make_specs, prompts, serve
from live import PATIENCE_S, Answer, check_all_end_right, has_gone, running, submit, wait_for
from tiny_scenario import write_tiny_scenario

from helixreal.engines import make_engine
from helixreal.engines.engine import GREEDY, Sampling
from helixreal.engines.failures import EngineLostError
from helixreal.inventory import NodeEntry
from helixreal.serving.frontend import Failed
from helixsim.errors import InputError

pytestmark = pytest.mark.torch

LENGTHS = [1, 7, 90, 3, 33]
LAYERS = [(0, 5), (3, 8)]
ROUTE = ((0, 0, 5), (1, 5, 8))
"""The second stage is entered in its middle."""
TWO = "cpu,cpu"

on_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="vLLM for GPUs does not take CPUs")


def answers(model, device):
    """Greedy and drawn tokens of requests through two stages, prefilled in chunks."""
    stages = [
        make_engine("torch", spec)
        for spec in make_specs(model, LAYERS, entries=(5,), device=device)
    ]
    try:
        jobs = [
            Job(prompt, 16, arrival, ROUTE, sampling)
            for sampling in (GREEDY, Sampling(temperature=0.9, top_p=0.9, seed=5))
            for arrival, prompt in enumerate(prompts(LENGTHS))
        ]
        return serve(stages, jobs, chunk=16)
    finally:
        for stage in stages:
            stage.close()


def children(pid):
    """Processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def command(pid):
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def with_biases(model, folder):
    """The same model with a bias in every linear layer, in two files."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((model / "config.json").read_text())
    config |= {"attention_bias": True, "mlp_bias": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    for name, weight in list(weights.items()):
        if name.endswith("proj.weight"):
            bias = torch.randn(len(weight), generator=generator)
            weights[name.replace("weight", "bias")] = 0.2 * bias
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_two_ranks_give_the_tokens_of_one(model, tmp_path):
    biased = with_biases(model, tmp_path)
    alone = answers(biased, "cpu")
    assert alone != answers(model, "cpu"), "the biases matter"
    assert answers(biased, TWO) == alone
    assert not children(os.getpid()), "ranks end with their engine"


def test_a_rank_that_ends_ends_the_engine(model):
    (spec,) = make_specs(model, [(0, 8)], device=TWO)
    engine = make_engine("torch", spec)
    try:
        job = Job([1, 2, 3], 2, route=((0, 0, 8),))
        serve([engine], [job])
        assert engine.lost is None
        (process,) = engine._ranks._processes
        process.kill()
        wait_for(lambda: engine.lost, "its end is noticed")
        assert engine.lost == "rank 1 (device cpu) has ended with exit code -9"
        with pytest.raises(EngineLostError, match=r"rank 1 \(device cpu\) has ended"):
            serve([engine], [Job([1, 2, 3], 2, route=((0, 0, 8),))])
    finally:
        engine.close()


def test_layers_that_cannot_be_divided(model):
    (spec,) = make_specs(model, [(0, 8)], device="cpu,cpu,cpu")
    with pytest.raises(InputError) as error:
        make_engine("torch", spec)
    assert str(error.value) == (
        f"{model}/config.json: num_attention_heads: 4 cannot be divided among 3 devices; use 1 or 2"
    )


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu,cuda:0", "the devices of a node must be of one type, not cpu and cuda"),
        ("cpu,", "'cpu,' has an empty name; write, for example, cuda:0,cuda:1"),
        ("cuda:0,cuda:0", "'cuda:0' is named twice; name each GPU once"),
    ],
)
def test_devices_that_cannot_work_together(model, device, message):
    (spec,) = make_specs(model, [(0, 8)], device=device)
    with pytest.raises(InputError, match=message):
        make_engine("torch", spec)


def test_an_engine_that_cannot_load_leaves_no_rank_behind(model, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((model / "config.json").read_text())
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (spec,) = make_specs(tmp_path, [(0, 8)], device=TWO)
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp\.up_proj\.weight has the shape"):
        make_engine("torch", spec)
    assert not children(os.getpid())


def test_a_worker_with_two_devices(model, tmp_path, capfd):
    (spec,) = make_specs(model, [(0, 8)])
    engine = make_engine("torch", spec)
    jobs = [Job(prompt, 20, route=((0, 0, 8),)) for prompt in prompts(LENGTHS)]
    serve([engine], jobs)
    engine.close()
    scenario = write_tiny_scenario(
        tmp_path, {"n0": [0, 8]}, scheduler={"node": "vllm"}, physics="calibrated"
    )
    entry = NodeEntry(engine="torch", model=str(model), device=TWO, kv_memory_bytes=16 << 20)
    with running(scenario, entry) as (live, launch, _):
        (rank,) = children(launch.workers.pid("n0"))
        os.kill(rank, signal.SIGINT)  # as Ctrl-C does to all processes of a terminal
        asked = [Answer(job.prompt, 20, job.tokens) for job in jobs]
        for answer in asked:
            submit(live, answer)
        check_all_end_right(asked)
        late = Answer([1, 2, 3], 400)
        submit(live, late)
        wait_for(lambda: late.tokens, "a token")
        os.kill(rank, signal.SIGKILL)
        assert late.is_over.wait(PATIENCE_S)
        assert late.ends == [Failed("n0 was lost")]
        wait_for(lambda: has_gone(rank), "the rank is gone")
    assert "rank 1 (device cpu) has ended with exit code -9" in capfd.readouterr().err


@on_cpu
@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_vllm_divides_layers_among_its_workers(model):
    """The second stage is on two devices, entered in its middle; then one of them is lost."""
    expected = answers(model, "cpu")
    specs = make_specs(model, LAYERS, entries=(5,))
    stages = [make_engine("vllm", specs[0]), make_engine("vllm", replace(specs[1], device=TWO))]
    try:
        jobs = [Job(prompt, 16, place, ROUTE) for place, prompt in enumerate(prompts(LENGTHS))]
        assert serve(stages, jobs, chunk=32) == expected[: len(LENGTHS)]
        assert stages[1].lost is None
        workers = [pid for pid in children(os.getpid()) if "spawn_main" in command(pid)]
        os.kill(workers[-1], signal.SIGKILL)
        wait_for(lambda: stages[1].lost, "its end is noticed")
        with pytest.raises(EngineLostError, match="a worker process of vLLM has ended"):
            serve(stages, [Job([1, 2, 3], 2, route=ROUTE)])
    finally:
        for stage in stages:
            stage.close()


@on_cpu
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cpu,cuda:0", r"takes the first, here 'cpu:0,cpu:1'"),
        ("cpu,cpu,cpu", r"config\.json: num_attention_heads: 4 cannot be divided among 3 devices"),
    ],
)
def test_devices_that_vllm_does_not_take(model, device, message):
    (spec,) = make_specs(model, [(0, 8)], device=device)
    with pytest.raises(InputError, match=message):
        make_engine("vllm", spec)
