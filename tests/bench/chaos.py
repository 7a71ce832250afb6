"""A cluster of tiny torch engines under random faults: prints what became of every request.

    python tests/bench/chaos.py [--seconds 900] [--seed 0] [--streams 16] [--node vllm] [--keep DIR]

As root, each process lives in a network namespace, and links between workers are cut as well. The
exit code is 1 if an answer was wrong, a request did not end, a node did not come back, or the
memory of a process, once loaded, grew by more than 50 MB from the first to the last quarter.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from statistics import fmean

sys.path[:0] = [str(Path(__file__).parents[1] / "real"), str(Path(__file__).parents[1])]

from chaos import run_chaos  # noqa: E402  (found on the path above)

MOST_GROWTH_MB = 50.0
LOADING_SAMPLES, FEWEST_SAMPLES = 20, 20
"""One every 2 s: the first are left out; a process with few others says nothing about growth."""


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--node", default=None, help="node scheduler, for example vllm")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the logs")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the processes end with this one
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = run_chaos(
            folder,
            given.seconds,
            seed=given.seed,
            streams=given.streams,
            node_scheduler=given.node,
            report=print,
        )
    for kind, counts in (("faults", found.faults), ("ends", found.ends)):
        print(f"\n{kind}")
        for name, number in counts.most_common():
            print(f"  {number:6}  {name}")
    print("\nmemory, MB, of processes that lived long enough: early, late")
    wrong = [*found.wrong]
    for name, samples in found.memory_mb.items():
        loaded = samples[LOADING_SAMPLES:]
        if len(loaded) < FEWEST_SAMPLES:
            continue
        quarter = len(loaded) // 4
        early, late = fmean(loaded[:quarter]), fmean(loaded[-quarter:])
        print(f"  {name:16} {early:7.1f} {late:7.1f}")
        if late - early > MOST_GROWTH_MB:
            wrong.append(f"the memory of {name} grew from {early:.0f} to {late:.0f} MB")
    print(f"\n{len(wrong)} wrong")
    for each in wrong[:20]:
        print(f"  {each[:300]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
