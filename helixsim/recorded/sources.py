"""Tell the kinds of recordings apart and read them."""

from __future__ import annotations

from pathlib import Path

from helixsim.errors import InputError
from helixsim.recorded.bench_result import is_bench_result, read_bench_result
from helixsim.recorded.recording import RecordedRun, load_recorded_run
from helixsim.recorded.request_log import RequestLog, read_request_table

_TABLES = ("requests.csv", "requests.csv.gz")
_PASSES = ("events.csv", "events.csv.gz", "routes.jsonl", "routes.jsonl.gz")


def load_recording(path: str | Path) -> RecordedRun | RequestLog:
    """Read a recording of any kind.

    Parameters
    ----------
    path
        A folder of a recorded run, pass by pass; a folder with ``requests.csv``, or that file; or
        a result of `vllm bench serve`, or a folder that holds one.

    Raises
    ------
    InputError
        If there is no recording, or it is invalid; the message names file and row.
    """
    path = Path(path)
    if path.is_file():
        if path.name in _TABLES:
            return read_request_table(path.parent, path)
        return read_bench_result(path)
    if not path.is_dir():
        raise InputError("does not exist; name a folder or a file of a recording", file=path)
    if any((path / name).exists() for name in _PASSES):
        return load_recorded_run(path)
    for name in _TABLES:
        if (path / name).exists():
            return read_request_table(path, path / name)
    results = [file for file in sorted(path.glob("*.json")) if is_bench_result(file)]
    if len(results) > 1:
        raise InputError(
            f"holds {len(results)} results of benchmarks; name one, for example {results[0].name}",
            file=path,
        )
    if results:
        return read_bench_result(results[0])
    raise InputError(
        "holds no recording: it should contain events.csv.gz and routes.jsonl.gz, or "
        "requests.csv, or a result of `vllm bench serve --save-result --save-detailed`",
        file=path,
    )
