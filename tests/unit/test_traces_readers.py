"""Readers: each format as people have it, and one clear error for everything else."""

from __future__ import annotations

import gzip
from importlib.metadata import EntryPoint

import pytest

from helixsim.errors import TraceError
from helixsim.requests import SharedPrefix, TraceRequest
from helixsim.traces import TRACE_FORMATS, read_lengths, read_slot_arrivals, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 02:00:00+02:00,2399,6
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": []}
"""
BAILIAN = (
    '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 100, '
    '"output_length": 5, "type": "text", "turn": 1, "hash_ids": [1, 2]}\n'
    '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 20.5, "input_length": 500, '
    '"output_length": 3, "type": "text", "turn": 2, "hash_ids": [1, 2, 3]}\n'
)
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118.5,GPT-4,417,276,693,API log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens
0.25,374,44
4.3145790,396,109
"""
LENGTHS = "input_tokens,output_tokens\n374,44\n396,109\n"
MANY_ROWS = VIDUR + "".join(f"{i},{i % 997 + 1},{i % 89 + 1}\n" for i in range(9000))
SLOTS = "arrivals\n8\n0\n13\n"


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "any-name"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (AZURE, [(0.0, 374, 44), (4.314579, 396, 109)]),
        (AZURE_2024, [(0.0, 2399, 6), (0.00993, 2162, 5)]),
        (MOONCAKE, [(27.482, 6955, 52), (30.535, 6472, 26)]),
        (BAILIAN, [(0.0, 100, 5), (20.5, 500, 3)]),
        (BURSTGPT, [(5.0, 472, 18), (118.5, 417, 276)]),
        (VIDUR, [(0.25, 374, 44), (4.314579, 396, 109)]),
    ],
    ids=["azure", "azure-2024", "mooncake", "bailian", "burstgpt", "vidur"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_formats_are_told_by_content(file, content, expected, packed):
    data = gzip.compress(content.encode()) if packed else content.encode()
    rows = [
        (r.arrival_s, r.prompt_tokens, r.output_tokens) for r in read_trace(file(data)).requests
    ]
    assert rows == expected


def test_hashes_of_blocks_tell_what_prompts_share(file):
    first, second = read_trace(file(MOONCAKE)).requests
    assert first.prefix == SharedPrefix((46, 47), 512)
    assert second.prefix is None  # nothing is known of it
    bailian = read_trace(file(BAILIAN)).requests
    assert [r.prefix for r in bailian] == [SharedPrefix((1, 2), 16), SharedPrefix((1, 2, 3), 16)]


def test_the_last_block_may_be_shorter(file):
    line = '{"timestamp": 0, "input_length": 700, "output_length": 1, "hash_ids": [4, 5]}\n'
    prefix = read_trace(file(line)).requests[0].prefix
    assert prefix == SharedPrefix((4, 5), 512, 700)
    assert prefix.shared_tokens == 700


def test_every_format_takes_the_optional_columns(file):
    text = (
        "arrived_at,num_prefill_tokens,num_decode_tokens,hash_ids,block_tokens,priority\n"
        "0,40,1,7 8,16,-2\n1,2000,1,1 2,,\n2,40,1,,,3\n"
    )
    assert read_trace(file(text)).requests == (
        TraceRequest(0.0, 40, 1, SharedPrefix((7, 8), 16), -2),
        TraceRequest(1.0, 2000, 1, SharedPrefix((1, 2), 512)),
        TraceRequest(2.0, 40, 1, None, 3),
    )


def test_hashes_of_blocks_by_themselves_become_those_of_prefixes(file):
    # Block 2 comes after block 1 and after block 3: its KV cache is not the same in both.
    text = (
        "arrived_at,num_prefill_tokens,num_decode_tokens,hash_ids,block_tokens\n"
        "0,32,1,1 2,16\n1,32,1,3 2,16\n2,48,1,1 2 2,16\n"
    )
    keys = [r.prefix.keys for r in read_trace(file(text)).requests]
    assert keys == [(0, 1), (2, 3), (0, 1, 4)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("1 x,,", "hash_ids: '1 x' is not a list of whole numbers"),
        ("-1,,", "hash_ids: '-1' is not a list of whole numbers"),
        ("1,0,", "block_tokens: a block has at least one token"),
        ("1,16,high", "priority: 'high' is not a whole number"),
    ],
)
def test_bad_optional_columns_are_told_by_name(file, fields, message):
    text = (
        "arrived_at,num_prefill_tokens,num_decode_tokens,hash_ids,block_tokens,priority\n"
        f"0,40,1,{fields}\n"
    )
    with pytest.raises(TraceError, match=rf"row 2: {message}"):
        read_trace(file(text))


def test_bad_hashes_of_json(file):
    line = '{"timestamp": 0, "input_length": 700, "output_length": 1, "hash_ids": [4, "a"]}\n'
    with pytest.raises(TraceError, match="row 1: hash_ids: "):
        read_trace(file(line))


def test_failed_requests_of_burstgpt_are_left_out_and_counted(file):
    trace = read_trace(file(BURSTGPT))
    assert (len(trace), trace.num_skipped) == (2, 1)


def test_lengths_of_a_list_keep_its_order(file):
    assert read_lengths(file(LENGTHS)).pairs == ((374, 44), (396, 109))
    assert read_lengths(file(gzip.compress(LENGTHS.encode()))).pairs == ((374, 44), (396, 109))


def test_lengths_of_a_trace_are_in_order_of_arrival(file):
    assert read_lengths(file(AZURE_2024)).pairs == ((2399, 6), (2162, 5))


def test_slot_arrivals(file):
    assert read_slot_arrivals(file(SLOTS)) == (8, 0, 13)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + VIDUR,
        VIDUR.replace("\n", "\r\n"),
        VIDUR.replace("\n", "\r"),
        VIDUR.replace("374", '"374"')
        .replace("num_prefill", ' "num_prefill')
        .replace("fill_tokens", 'fill_tokens"'),
        VIDUR.replace("\n", "\n\n") + "  \n,,\n",
        VIDUR.rstrip("\n"),
        VIDUR.replace("\n", ",caf\u00e9\n"),
        VIDUR.replace(",", ", "),
    ],
    ids=["bom", "crlf", "cr", "quoted", "blank rows", "no last newline", "more columns", "spaces"],
)
def test_ways_to_write_the_same_csv(file, content):
    assert read_trace(file(content)) == read_trace(file(VIDUR))


def test_other_columns_may_hold_bytes_that_are_no_text(file):
    latin = BURSTGPT.replace("ChatGPT", "Café").encode("latin-1")
    assert read_trace(file(latin)) == read_trace(file(BURSTGPT))


def test_columns_may_come_in_any_order(file):
    text = "num_decode_tokens,arrived_at,num_prefill_tokens\n44,0.25,374\n109,4.3145790,396\n"
    assert read_trace(file(text)) == read_trace(file(VIDUR))


def test_rows_are_sorted_and_ties_keep_their_order(file):
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n2,1,1\n1,2,2\n2,3,3\n1,4,4\n"
    assert [r.prompt_tokens for r in read_trace(file(text)).requests] == [2, 4, 1, 3]


def vidur_row(row):
    return f"arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n{row}\n"


def mooncake_row(row):
    return MOONCAKE.splitlines()[0] + "\n" + row + "\n"


def short_id(parameter):
    """The end of a file's content tells the cases apart, and some files are long."""
    return ascii(parameter)[-30:]


@pytest.mark.parametrize(
    ("content", "row", "about"),
    [
        (vidur_row("1,-5,1"), 3, "'-5' is not a whole number"),
        (vidur_row("1,5.5,1"), 3, "'5.5'"),
        (vidur_row("1,nan,1"), 3, "'nan'"),
        (vidur_row("1,,1"), 3, "''"),
        (vidur_row("1,1_000,1"), 3, "'1_000'"),
        (vidur_row("1,\u0665,1"), 3, "whole number"),
        (vidur_row("1,200000000,1"), 3, "100000000"),
        (vidur_row("1," + "9" * 5000 + ",1"), 3, "100000000"),
        (vidur_row("-1,1,1"), 3, "'-1' is not a time"),
        (vidur_row("nan,1,1"), 3, "not a time"),
        (vidur_row("inf,1,1"), 3, "not a time"),
        (vidur_row("1e300,1,1"), 3, "not a time"),
        (vidur_row("1_0,1,1"), 3, "not a time"),
        (vidur_row("soon,1,1"), 3, "not a time"),
        (vidur_row("1,1"), 3, "2 columns, the header 3"),
        (vidur_row("1,1,1,1"), 3, "4 columns"),
        (vidur_row('1,"1,1\n2,2,2'), 4, "no comma-separated row"),
        (vidur_row("1,\x00,1"), 3, "whole number"),
        (vidur_row("1,1," + "x" * 2_000_000), 3, "longer than"),
        (vidur_row("\n\n1,1,x"), 5, "'x'"),
        (AZURE + "2023-11-16,1,1\n", 4, "not a date and time"),
        (AZURE + "2023-13-16 18:15:46.1,1,1\n", 4, "no date and time: month"),
        (AZURE + "46.5,1,1\n", 4, "not a date and time"),
        (AZURE + "2023-11-16 18:15:46.12345678901,1,1\n", 4, "not a date and time"),
        (BURSTGPT + "119,GPT-4,5,-5,0,API log\n", 5, "'-5'"),
        (mooncake_row("[1, 2, 3]"), 2, "no JSON object but a list"),
        (mooncake_row("{"), 2, "no JSON object"),
        (mooncake_row("[" * 100_000), 2, "no JSON object"),
        (mooncake_row('{"timestamp": 1, "input_length": 2}'), 2, "has no output_length"),
        (mooncake_row('{"timestamp": NaN, "input_length": 2, "output_length": 2}'), 2, "nan"),
        (mooncake_row('{"timestamp": true, "input_length": 2, "output_length": 2}'), 2, "True"),
        (mooncake_row('{"timestamp": 1, "input_length": true, "output_length": 2}'), 2, "True"),
        (mooncake_row('{"timestamp": 1, "input_length": 2.5, "output_length": 2}'), 2, "2.5"),
        (mooncake_row('{"timestamp": 1, "input_length": [], "output_length": 2}'), 2, "[]"),
        (mooncake_row('{"timestamp": 1, "input_length": "x", "output_length": 2}'), 2, "'x'"),
        ('{"timestamp": 1}\n', 1, "is no known format"),
        ("a,b,c\n1,2,3\n", 1, "is no known format"),
        ("ContextTokens,GeneratedTokens\n1,2\n", 1, "is no known format"),
        ("arrivals,input_tokens,output_tokens\n1,2,3\n", 1, "several formats"),
        (
            "arrived_at,num_prefill_tokens,num_decode_tokens,arrived_at\n1,1,1,1\n",
            1,
            "duplicate column",
        ),
        (bytes(range(256)) * 8, 1, None),
        (b"\x00" * 3_000_000, 1, "longer than"),
        (VIDUR.encode("utf-16"), 1, "is no known format"),
    ],
    ids=short_id,
)
def test_a_bad_row_is_named_by_file_and_line(file, content, row, about):
    path = file(content)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert (caught.value.file, caught.value.where) == (str(path), f"row {row}")
    assert about is None or about in caught.value.message
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "about"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (gzip.compress(b""), "empty"),
        (b"arrived_at,num_prefill_tokens,num_decode_tokens\n", "no rows"),
        (
            BURSTGPT.splitlines()[0] + "\n5,ChatGPT,472,0,472,x\n",
            "no row of it can be run: 1 without output tokens",
        ),
        (LENGTHS, "lengths without arrival times, not requests"),
        (SLOTS, "arrivals per slot of time, not requests"),
        (gzip.compress(MANY_ROWS.encode())[:5000], "gzip file is cut short"),
        (gzip.compress(VIDUR.encode())[:-9], "gzip file is cut short"),
        (gzip.compress(VIDUR.encode()) + b"junk", "gzip file is cut short or damaged"),
        (b"\x1f\x8bjunkjunkjunk", "gzip file is cut short or damaged"),
    ],
    ids=short_id,
)
def test_a_file_that_is_no_trace(file, content, about):
    path = file(content)
    with pytest.raises(TraceError, match=about) as caught:
        read_trace(path)
    assert caught.value.file == str(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read_trace(tmp_path / "missing.csv")
    with pytest.raises(TraceError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)


def test_other_readers_say_what_they_got_instead(file):
    with pytest.raises(TraceError, match="arrivals per slot of time, not lengths"):
        read_lengths(file(SLOTS))
    with pytest.raises(TraceError, match="lengths without arrival times, not arrivals per slot"):
        read_slot_arrivals(file(LENGTHS))
    with pytest.raises(TraceError, match="row 3: '-1' is not a whole number"):
        read_slot_arrivals(file("arrivals\n1\n-1\n"))
    with pytest.raises(TraceError, match="no row of it can be run: 1 without prompt tok"):
        read_lengths(file("input_tokens,output_tokens\n0,5\n"))


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "num_rows", "first"),
    [
        ("azure_conv", 16657, (374, 44)),
        ("azure_code", 7574, (3180, 8)),
        ("alpaca", 47379, (6, 34)),
        ("shared_gpt", 82814, (29, 202)),
    ],
)
def test_reference_lengths(reference, name, num_rows, first):
    lengths = read_lengths(reference / "traces" / f"{name}_lengths.csv.gz")
    assert (len(lengths), lengths.pairs[0]) == (num_rows, first)


@pytest.mark.reference
@pytest.mark.parametrize(("name", "total"), [("azure_conv", 16657), ("azure_code", 7574)])
def test_reference_arrivals(reference, name, total):
    counts = read_slot_arrivals(reference / "traces" / f"{name}_arrivals_per_3s.csv")
    assert (len(counts), sum(counts)) == (1200, total)


def test_a_format_that_cannot_be_imported_does_not_keep_others_from_being_read(
    tmp_path, monkeypatch
):
    broken = EntryPoint("broken", "no_such_module:FORMAT", TRACE_FORMATS.group)
    monkeypatch.setattr(TRACE_FORMATS, "_entry_points", {"broken": broken})
    (tmp_path / "trace.csv").write_text(VIDUR)
    assert len(read_trace(tmp_path / "trace.csv")) == VIDUR.count("\n") - 1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TraceError, match="trace format 'broken' cannot be imported: No module"):
        read_trace(tmp_path / "other.csv")
