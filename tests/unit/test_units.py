import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helixsim import units
from helixsim.errors import InputError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.seconds, "1 ms", 0.001),
        (units.seconds, "1ms", 0.001),
        (units.seconds, "0 s", 0.0),
        (units.seconds, "2 min", 120.0),
        (units.seconds, "1e-3 s", 0.001),
        (units.seconds, "1 µs", 1e-6),
        (units.seconds, "1 us", 1e-6),
        (units.num_bytes, "24 GB", 24e9),
        (units.num_bytes, "24 GiB", 24 * 2**30),
        (units.num_bytes, "1.53 GB", 1.53e9),
        (units.num_bytes, "16384 B", 16384.0),
        (units.num_bytes, "8 bit", 1.0),
        (units.bytes_per_s, "10 GB/s", 1e10),
        (units.bytes_per_s, "10 Gbit/s", 1.25e9),
        (units.bytes_per_s, "10 Gbps", 1.25e9),
        (units.bytes_per_s, "100 Mbit / s", 12.5e6),
    ],
)
def test_quantities_become_si_base_units(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "5",
        "-1 s",
        "nan s",
        "inf s",
        "1e400 s",
        "1e999999999 s",
        "1,5 s",
        "1_000 s",
        "1 s + 1 s",
        "2 * 3 s",
        "(1) s",
        "9**9**9 s",
        "1 s s",
        "1 s/",
        "1 kg",
        "1 m",
        "1 GB",
        "1 __import__",
        "one second",
        "1 s\n",
        "1" * 1000 + " s",
        "\uff11 s",
    ],
)
def test_what_is_no_time_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="'1 ms'"):
        units.seconds(text)


@pytest.mark.parametrize("text", ["10 Gb/s", "10 GB", "10 s", "10 GB/s/s", "10 GB/min/s"])
def test_what_is_no_bandwidth_is_refused_with_an_example(text):
    with pytest.raises(InputError, match="'10 Gbit/s'"):
        units.bytes_per_s(text)


@given(st.floats(min_value=0, max_value=1e6, allow_nan=False))
def test_times_survive_being_written_and_read(value):
    assert units.seconds(units.format_seconds(value)) == value


@given(st.floats(min_value=0, max_value=1e15, allow_nan=False))
def test_bandwidths_survive_being_written_and_read(value):
    assert units.bytes_per_s(units.format_bytes_per_s(value)) == value


@pytest.mark.parametrize(
    ("value", "text"), [(0.001, "1 ms"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (0.0, "0 s")]
)
def test_times_are_written_readably(value, text):
    assert units.format_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.25e9, "1.25 GB/s"), (12.5e6, "12.5 MB/s"), (3.0, "3 B/s")]
)
def test_bandwidths_are_written_readably(value, text):
    assert units.format_bytes_per_s(value) == text


def test_measured_milliseconds_are_multiplied_not_divided():
    assert units.seconds_from_ms(0.9) == 0.9 * 0.001
    assert units.seconds_from_ms(0.9) != 0.9 / 1000


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("helixsim.units", {"pint"}),
        ("helixsim.profiles.machine", {"pint", "yaml", "pydantic"}),
        ("helixsim.profiles.throughput", {"pint", "yaml", "pydantic"}),
    ],
)
def test_imports_stay_light(module, absent):
    code = f"import {module}, sys; print(*sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


COMMON = [
    (dimension, unit) for dimension in units.Dimension for unit in units._COMMON_UNITS[dimension]
]


@given(
    st.sampled_from(COMMON),
    st.one_of(
        st.integers(0, 10**15).map(str),
        st.floats(0, 1e15).map(repr),
        st.decimals(0, 10**6, places=3).map(str),
    ),
    st.sampled_from(["", " "]),
)
def test_common_units_mean_what_pint_says(common, number, space):
    dimension, unit = common
    text = f"{number}{space}{unit}"
    by_pint = units._registry().Quantity(text).to(dimension.unit).magnitude
    assert units.parse_quantity(text, dimension) == float(by_pint)


def test_pint_defines_each_unit_once(caplog):
    units._registry.cache_clear()
    with caplog.at_level("INFO"):
        assert units.parse_quantity("10 Mibit/s", units.Dimension.BANDWIDTH) == 10 * 2**20 / 8
        assert units.parse_quantity("10 kilobits/second", units.Dimension.BANDWIDTH) == 1250
    assert caplog.messages == []
