"""A measured machine is a machine type that helixsim loads and simulates."""

import pytest
import typer
import yaml
from engine_driver import DEVICE
from typer.testing import CliRunner

from helixreal.cli.profile import profile
from helixreal.engines.engine import Row
from helixreal.engines.model_config import LlamaConfig
from helixreal.profiling import ProfileSettings, measure
from helixsim import load_scenario, simulate
from helixsim.cli.group import HelixGroup
from helixsim.control.kv_cache import KvCache
from helixsim.profiles.library import load_llm, load_machine_type

pytestmark = pytest.mark.torch

LAYER_BYTES = 4 * (2 * 64 + 64 * 128 * 2 + 2 * 64 * 64 + 3 * 64 * 128)
KV_BYTES = 4 * 2 * 2 * 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny llama")


@pytest.fixture
def run(model, tmp_path):
    app = typer.Typer(cls=HelixGroup)
    app.command()(profile)
    app.callback()(lambda: None)

    def run(*options, output="box.yaml"):
        arguments = ["profile", "--llm", model, "-o", tmp_path / output, "--repeats", 1]
        arguments += ["--device", DEVICE, "--max-batch-tokens", 64, *options]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def test_the_files_alone_serve_a_simulated_scenario(run, tmp_path):
    result = run("--kv-memory", "4 MB", "--llm-file", tmp_path / "tiny.yaml")
    assert result.exit_code == 0, result.output

    llm = load_llm("tiny.yaml", tmp_path)
    assert (llm.name, llm.num_layers) == ("tiny-llama", 8)
    assert llm.activation_bytes_per_token == 256
    assert llm.layer_bytes == LAYER_BYTES
    assert llm.kv_bytes_per_token_layer == KV_BYTES

    found = load_machine_type("box.yaml", tmp_path).profiles["tiny-llama"]
    assert found.prefill.tokens == (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    assert found.decode.tokens[:4] == (0, 1, 2, 3)
    assert all(0 < found.prefill(count) < 1 for count in (1, 64))
    assert found.max_layers == 8
    for count, capacity in found.capacities.items():
        assert 0.9 * 4e6 < capacity.kv_token_layers * KV_BYTES <= 4e6, count

    scenario = {
        "schema": 1,
        "name": "measured",
        "llm": "tiny.yaml",
        "machine_types": ["box.yaml"],
        "cluster": {
            "coordinator": {"nic": "10 Gbit/s"},
            "nodes": [{"name": "a", "type": "box"}, {"name": "b", "type": "box"}],
            "network": {"within": {"bandwidth": "1 Gbit/s", "latency": "1 ms"}},
        },
        "placement": {"layers": {"a": [0, 4], "b": [4, 8]}},
        "workload": {"mode": "offline", "lengths": "alpaca", "initial_requests": 4},
        "run": {"warmup": "0 s", "duration": "10 s"},
    }
    file = tmp_path / "measured.yaml"
    file.write_text(yaml.safe_dump(scenario))
    served = simulate(load_scenario(file))
    assert len(served.requests) > 0
    assert served.summary["decode_tokens_per_s"] > 0


CONFIG = LlamaConfig(
    num_layers=10, hidden_size=64, intermediate_size=128, num_heads=4, num_kv_heads=2,
    head_dim=32, vocab_size=256, norm_eps=1e-5, tied=False, qkv_bias=False,
    output_bias=False, mlp_bias=False, rope_theta=1e4,
)  # fmt: skip


def make_machine(made, memory, kv_share=1.0):
    """An engine that computes nothing; its caches take a share of what weights leave free."""

    class Machine:
        block_tokens = 16
        wire_bytes_per_token = 256

        def __init__(self, spec):
            made.append(self)
            self.spec, self.is_closed = spec, False
            assert all(other.is_closed for other in made[:-1])
            free = kv_share * (memory - spec.num_held * LAYER_BYTES)
            self.kv_blocks = int(free / (16 * KV_BYTES * spec.num_held))
            self.kv = KvCache(self.kv_blocks, 16)

        def run(self, rows, start, end):
            assert start in self.spec.entry_layers
            assert all(isinstance(row, Row) and self.kv.held(row.request) for row in rows)
            return [b"" for _ in rows]

        def close(self):
            self.is_closed = True

    return Machine


def test_kv_capacity_is_asked_for_and_between_follows_from_the_weights():
    made, memory = [], 9 * LAYER_BYTES
    machine = make_machine(made, memory)
    settings = ProfileSettings(model=None, layers=(2, 5), max_batch_tokens=32, context_tokens=100)
    measured = measure(machine, settings, CONFIG)
    assert [engine.spec.num_held for engine in made] == [2, 5]
    assert list(measured.kv_token_layers) == [1, 2, 3, 4, 5]
    for count, token_layers in measured.kv_token_layers.items():
        exact = (memory - count * LAYER_BYTES) / KV_BYTES
        assert token_layers == pytest.approx(exact, abs=16 * 5 * 2)
    # 5 layers leave 166 blocks' worth: as many decodes of 101 tokens as have room are timed.
    room = 16 * made[-1].kv_blocks // 101
    assert max(measured.decode) <= room
    assert made[-1].kv.num_used == 0

    everything = measure(machine, ProfileSettings(model=None, max_batch_tokens=32), CONFIG)
    assert max(everything.kv_token_layers) == 8


def test_an_engine_that_leaves_memory_free_is_not_taken_to_use_all():
    made, memory = [], 30 * LAYER_BYTES
    settings = ProfileSettings(model=None, max_batch_tokens=8, context_tokens=8)
    measured = measure(make_machine(made, memory, kv_share=0.5), settings, CONFIG)
    assert [engine.spec.num_held for engine in made] == [1, 4]
    assert list(measured.kv_token_layers) == list(range(1, 11))
    for count, token_layers in measured.kv_token_layers.items():
        exact = (memory - count * LAYER_BYTES) / 2 / KV_BYTES
        assert token_layers == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("layers", "held", "layer_ms"),
    [((), 10, 2 + 6 / 10), ((2, 5), 5, 2 + 6 / 5), ((1,), 1, 2 + 6)],
)
def test_the_fixed_time_of_a_pass_is_shared_by_the_layers_that_are_held(
    monkeypatch, layers, held, layer_ms
):
    """Every pass takes 6 ms and 2 ms for each layer, by a clock that stands still otherwise."""
    clock = [0.0]

    class Timed(make_machine([], 30 * LAYER_BYTES)):
        def run(self, rows, start, end):
            clock[0] += 1e-3 * (6 + 2 * (end - start))
            return super().run(rows, start, end)

    monkeypatch.setattr("helixreal.profiling.time.perf_counter", lambda: clock[0])
    settings = ProfileSettings(model=None, layers=layers, max_batch_tokens=4, context_tokens=8)
    measured = measure(Timed, settings, CONFIG)
    assert max(measured.kv_token_layers) == held
    for curve in (measured.prefill, measured.decode):
        assert list(curve) == [1, 2, 3, 4]
        assert [1e3 * seconds for seconds in curve.values()] == pytest.approx([layer_ms] * 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "abacus"], "no engine 'abacus'"),
        (["--dtype", "int8"], "no dtype 'int8'"),
        (["--device", "abacus"], "cannot use the device 'abacus'"),
        (["--layers", "1,x"], "--layers: '1,x' is not a list"),
        (["--layers", "4,2"], "layers must be increasing numbers"),
        (["--layers", "9"], "layers must be increasing numbers from 1 to 8"),
        (["--kv-memory", "4"], "--kv-memory: '4' is not a quantity"),
        (["--kv-memory", "1 B"], "1 bytes for KV caches are less than one block"),
        (["--kv-memory", "300 kB"], "no room to time decodes"),
        (["--nic", "0 bit/s"], "--nic: must be above zero"),
        (["--name", "my box"], "--name: 'my box' is not a valid name; 'my-box' is"),
        (["--llm", "nowhere"], "config.json: cannot be read"),
    ],
)
def test_mistakes_end_with_one_message_and_no_file(run, tmp_path, options, message):
    result = run(*options)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_forced(run, tmp_path):
    (tmp_path / "box.yaml").write_text("mine")
    result = run("--kv-memory", "4 MB")
    assert result.exit_code == 2
    assert "exists already" in result.output
    assert (tmp_path / "box.yaml").read_text() == "mine"
    assert run("--kv-memory", "4 MB", "--force", "--layers", "1,3").exit_code == 0
    assert load_machine_type("box.yaml", tmp_path).profiles["tiny-llama"].max_layers == 3
    assert "must end in .yaml" in run(output="box.txt").output


def test_an_interrupt_leaves_no_file(run, tmp_path, monkeypatch):
    from helixreal.engines.torch_engine import TorchEngine

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchEngine, "run", interrupt)
    assert run("--kv-memory", "4 MB").exit_code == 130
    assert list(tmp_path.iterdir()) == []
