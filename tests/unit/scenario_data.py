"""A working scenario as plain data, and how to change it."""

import copy

CLUSTER = {
    "coordinator": {"nic": "80 Gbit/s"},
    "nodes": [
        {"name": "big", "type": "A100"},
        {"type": "A100", "count": 5},
        {"type": "L4", "count": 2, "name": "far-{i}", "region": "east"},
    ],
    "network": {
        "within": {"bandwidth": "10 Gbit/s", "latency": "1 ms"},
        "across": {"bandwidth": "100 Mbit/s", "latency": "50 ms"},
    },
}
PLACEMENT = {
    "layers": {
        "big": [0, 12],
        "a100-0": [12, 24],
        "a100-1": [24, 36],
        "a100-2": [36, 48],
        "a100-3": [48, 60],
        "a100-4": [60, 70],
        "far-0": [66, 73],
        "far-1": [73, 80],
    }
}
SCENARIO = {
    "schema": 1,
    "name": "mine",
    "llm": "llama2-70b",
    "cluster": CLUSTER,
    "placement": PLACEMENT,
    "workload": {"mode": "offline"},
    "run": {"duration": "100 s"},
}


def changed(data, changes):
    """A copy of nested data with values set (or, for ..., left out) at dotted paths."""
    data = copy.deepcopy(data)
    for path, value in changes.items():
        target = data
        *parents, last = (int(step) if step.isdigit() else step for step in path.split("."))
        for parent in parents:
            target = target.setdefault(parent, {}) if isinstance(target, dict) else target[parent]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return data
