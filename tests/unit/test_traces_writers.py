"""Writers: exact text, bytes that repeat, and what they cannot write."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from helixsim.errors import InputError, OutputError
from helixsim.requests import SharedPrefix, TraceRequest
from helixsim.traces import Lengths, Trace, read_lengths, read_trace, write_lengths, write_trace

TRACE = Trace((TraceRequest(0.1, 374, 44), TraceRequest(1 / 3, 396, 109)))
TEXT = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.1,374,44\n0.3333333333333333,396,109\n"


def test_a_trace_is_written_as_vidur_csv(tmp_path):
    write_trace(TRACE, tmp_path / "trace.csv")
    assert (tmp_path / "trace.csv").read_bytes() == TEXT.encode()
    assert read_trace(tmp_path / "trace.csv") == TRACE


def test_what_prompts_share_is_written_if_there_is_any(tmp_path):
    trace = Trace(
        (
            TraceRequest(0.0, 700, 4, SharedPrefix((3, 9), 512, 700)),
            TraceRequest(1.0, 512, 4, SharedPrefix((3,), 512), 2),
            TraceRequest(2.0, 10, 4),
        )
    )
    write_trace(trace, tmp_path / "trace.csv")
    assert (tmp_path / "trace.csv").read_text() == (
        "arrived_at,num_prefill_tokens,num_decode_tokens,hash_ids,block_tokens,priority\n"
        "0.0,700,4,3 9,512,\n1.0,512,4,3,512,2\n2.0,10,4,,,\n"
    )
    assert read_trace(tmp_path / "trace.csv") == trace
    unwritable = Trace((TraceRequest(0.0, 700, 4, SharedPrefix(("a",), 512)),))
    with pytest.raises(InputError, match="only if they are whole numbers"):
        write_trace(unwritable, tmp_path / "trace.csv")


def test_gzip_goes_by_suffix_and_holds_no_name_or_time(tmp_path):
    write_trace(TRACE, tmp_path / "one.csv.gz")
    write_trace(TRACE, str(tmp_path / "two.csv.gz"))
    packed = (tmp_path / "one.csv.gz").read_bytes()
    assert packed == (tmp_path / "two.csv.gz").read_bytes()
    assert (packed[3], packed[4:8]) == (0, bytes(4))
    assert gzip.decompress(packed).decode() == TEXT
    assert read_trace(tmp_path / "one.csv.gz") == TRACE


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    request = TraceRequest(float(np.float64(0.1)), 1, 1)
    of_numpy = TraceRequest(np.float64(0.1), np.int64(1), np.int64(1))
    write_trace(Trace((of_numpy,)), tmp_path / "trace.csv")
    assert read_trace(tmp_path / "trace.csv").requests == (request,)


def test_lengths_read_back(tmp_path):
    lengths = Lengths(((374, 44), (396, 109)))
    write_lengths(lengths, tmp_path / "lengths.csv")
    assert (tmp_path / "lengths.csv").read_text() == "input_tokens,output_tokens\n374,44\n396,109\n"
    assert read_lengths(tmp_path / "lengths.csv") == lengths


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"trace\.csv: cannot be written: No such file"):
        write_trace(TRACE, tmp_path / "no" / "trace.csv")
