import json

import pytest
from typer.testing import CliRunner

from helixsim.cli import app
from helixsim.errors import ScenarioError
from helixsim.hardware.catalogue import load_gpu, shipped_gpus

OWN = """\
kind: gpu
name: my-gpu
memory: 48 GB
bandwidth: 900 GB/s
peak_tflops: {bf16: 200}
"""


def write(folder, text):
    file = folder / "my-gpu.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def run(*arguments):
    return CliRunner().invoke(app, ["gpus", *map(str, arguments)])


# -- the catalogue


def test_the_catalogue_has_the_common_gpus():
    names = {gpu.name for gpu in shipped_gpus()}
    assert len(names) == len(shipped_gpus()) >= 28
    assert {"T4", "A10G", "A100-80-SXM", "L40S", "RTX-4090", "H100-SXM", "B200", "MI300X"} < names


@pytest.mark.parametrize("gpu", shipped_gpus(), ids=lambda gpu: gpu.name)
def test_an_entry_is_complete_and_plausible(gpu):
    assert gpu.source[-1] == ")" or gpu.source[-4:].isdigit()  # a title and a year
    assert gpu.generation != "unknown"
    assert gpu.power_w is not None
    assert 0 < gpu.interconnect_bytes_per_s < gpu.memory_bytes_per_s
    # Dense peaks: narrower formats are no slower than 16 bits. They are at most twice as fast for
    # each halving; four times where a consumer card halves products with FP32 accumulation.
    wide = gpu.flop_per_s.get("bf16") or gpu.flop_per_s["fp16"]
    for form, most in (("fp8", 2.05), ("int8", 4.05), ("nvfp4", 8.05)):
        assert 1 <= gpu.flop_per_s.get(form, wide) / wide <= most
    # FLOP for each byte of memory bandwidth, far lower with figures in the wrong unit.
    assert 30 < wide / gpu.memory_bytes_per_s < 600


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100-sxm", "H100-SXM"),
        ("RTX 4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("A100 80GB PCIe", "A100-80-PCIe"),
        ("Tesla V100-SXM2-16GB", "V100-16-SXM"),
        ("L40", "L40"),
    ],
)
def test_names_match_as_people_write_them(name, found):
    assert load_gpu(name).name == found


def test_a_name_of_several_gpus_lists_them():
    with pytest.raises(ScenarioError, match="'h100' is the name of several GPUs: H100-PCIe, H100-"):
        load_gpu("h100")
    with pytest.raises(ScenarioError, match="A100-40-SXM, A100-80-SXM; say which"):
        load_gpu("a100-sxm")


@pytest.mark.parametrize("name", ["", "ada", "16", "PRO", "NVIDIA", "my.yml.txt"])
def test_a_word_that_many_gpus_have_names_none(name):
    with pytest.raises(ScenarioError, match=f"the catalogue has no GPU '{name}'"):
        load_gpu(name)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ScenarioError, match="no GPU 'L400'; did you mean 'L40'"):
        load_gpu("L400")


# -- a GPU of the user


def test_four_numbers_are_a_gpu(tmp_path):
    write(tmp_path, OWN)
    gpu = load_gpu("my-gpu.yaml", tmp_path)
    assert (gpu.name, gpu.title, gpu.generation) == ("my-gpu", "my-gpu", "unknown")
    assert gpu.memory_bytes == 48e9
    assert gpu.memory_bytes_per_s == 900e9
    assert gpu.flop_per_s == {"bf16": 200e12}
    assert (gpu.interconnect, gpu.interconnect_bytes_per_s) == ("pcie", 32e9)
    assert load_gpu("My GPU", own=[gpu]) is gpu


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{bf16: 200}", "{fp8: 200}"), "my-gpu.yaml: peak_tflops: give the peak of bf16 or"),
        (("{bf16: 200}", "{bf17: 200}"), "my-gpu.yaml: peak_tflops.*bf17"),
        (("{bf16: 200}", "{bf16: -1}"), "my-gpu.yaml: peak_tflops.bf16"),
        (("name: my-gpu", "name: my-gpu\ngeneration: hoper"), "my-gpu.yaml: generation"),
        (("900 GB/s", "0 GB/s"), "my-gpu.yaml: bandwidth: must be above zero"),
        (("48 GB", "48"), "my-gpu.yaml: memory: 48 has no unit"),
        (("memory", "memmory"), "memmory"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, change, message):
    file = write(tmp_path, OWN.replace(*change))
    with pytest.raises(ScenarioError, match=message):
        load_gpu(file)


# -- the command


def test_the_command_lists_all_gpus():
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == len(shipped_gpus()) + 2
    assert next(line for line in lines if line.startswith("L4 ")).split() == (
        ["L4", "23.7", "300", "121", "242", "pcie", "72", "0.7"]
    )


def test_the_command_shows_one_gpu_with_its_source():
    result = run("l4")
    assert "peak fp8       242 TFLOP/s" in result.stdout
    assert "source         NVIDIA L4 Tensor Core GPU data sheet, 2023" in result.stdout


def test_the_command_prints_json(tmp_path):
    assert [gpu["name"] for gpu in json.loads(run("--json").stdout)] == (
        [gpu.name for gpu in shipped_gpus()]
    )
    own = json.loads(run(write(tmp_path, OWN), "--json").stdout)
    assert own["flop_per_s"] == {"bf16": 200e12}


def test_the_command_refuses_an_ambiguous_name():
    result = run("a100")
    assert result.exit_code == 2
    assert "several GPUs" in result.stderr
