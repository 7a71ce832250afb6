"""Writes the tables of keys in docs/ from the models that check the files.

A table stands between two comments, ``<!-- keys: KIND -->`` or ``<!-- keys: KIND/PART -->`` and
``<!-- end of keys -->``, where KIND is a kind of file and PART a part of it (a model's name). A
part is linked to by the heading above its table. The tables of docs/traces.md, between
``<!-- table: NAME -->`` and ``<!-- end of table -->``, come from docstrings. Run
from the project root::

    PYTHONPATH=. python tests/tools/scenario_reference.py

Fails if a part of a kind has no table, or a key has nothing that says what it means.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent

from helixsim.scenario import schema
from helixsim.scenario.schema import FILE_KINDS

DOCS = Path(__file__).resolve().parents[2] / "docs"

TABLE = re.compile(
    r"(?<=<!-- keys: )(?P<key>[a-z]+(?:/\w+)?)(?P<start> -->\n).*?(?=<!-- end of keys -->)",
    re.DOTALL,
)
NEARNESS = re.compile(
    r"(?<=<!-- table: )(?P<name>\w+)(?P<start> -->\n).*?(?=<!-- end of table -->)", re.DOTALL
)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

SAME_AS = {"cluster": "ClusterSpec", "generator": "GeneratorSpec", "placement": "PlacementSpec"}
"""Kinds of file that hold the keys of a part of a scenario, and `schema` and `kind`."""

QUANTITIES = {"1 ms": ("time", "s"), "24 GB": ("size", "B"), "10 Gbit/s": ("bandwidth", "B/s")}
"""Example in the schema -> (what it is an example of, base unit)."""

UNBOUNDED = 2**53

json_schema = cache(schema.json_schema)

MEANINGS = {
    "scenario.schema": "Version of the format.",
    "scenario.name": "For titles and results.",
    "scenario.cluster": "The machines and what links them.",
    "scenario.scheduler": "How requests find their way.",
    "scenario.workload": "What users ask for, and when.",
    "scenario.faults": "Nodes that fail; see [physics](physics.md#faults-waiting-chunks).",
    "scenario.physics": "How the simulator takes the time of work; see [physics](physics.md).",
    "scenario.run": "How long, and what to record.",
    "*.description": "For readers.",
    "BandwidthSpreadSpec.mean": "Middle of the range.",
    "BandwidthSpreadSpec.spread": "Half the width of the range; below the mean.",
    "LatencySpreadSpec.mean": "Middle of the range.",
    "LatencySpreadSpec.spread": "Half the width of the range; at most the mean.",
    "ClusterInFile.file": "A cluster file, relative to the scenario's folder.",
    "ClusterSpec.coordinator": "Where every route starts and ends.",
    "ClusterSpec.nodes": "The machines, one by one or by group. Their order breaks ties.",
    "ClusterSpec.network": "What links them.",
    "CoordinatorSpec.nic": "Its network interface: one bandwidth for each way, or both.",
    "CoordinatorSpec.region": "Where it stands.",
    "GammaArrivalsSpec.gamma": "Gaps between arrivals are gamma-distributed.",
    "GeneratorSpec.coordinator": "Where every route starts and ends.",
    "GeneratorSpec.network": "What links the machines.",
    "GeneratorSpec.seed": "Of the order of the nodes and of spread values.",
    "KvSpec.high_water_mark": "Share of a node's KV cache that may be expected to be in use when a "
    "request is admitted.",
    "KvSpec.expected_output_ratio": "Answer to expect of a request, as a multiple of "
    "`workload.mean_output_tokens`.",
    "LinkSpec.from": "One way only, with `to`.",
    "LinkSpec.to": "One way only, with `from`.",
    "*.bandwidth": "What a link carries at most.",
    "*.latency": "Paid once by each message.",
    "NicSpec.inbound": "What it receives at most.",
    "NicSpec.outbound": "What it sends at most.",
    "NodeSpec.count": "So many alike.",
    "NodeSpec.region": "Where they stand.",
    "PlacementInFile.file": "A placement file, relative to the scenario's folder.",
    "RegionRuleSpec.between": "The two regions; one region twice for links within it.",
    "RunSpec.seed": "Of all randomness of the run.",
    "SchedulerSpec.policy": "Who decides about the next node; see "
    "[physics](physics.md#scheduling).",
    "SchedulerSpec.kv": "When a request is admitted (`maxflow`).",
    "SchedulerSpec.feed_high_water_mark": "Offline, `maxflow`: one more request comes while the "
    "fullest layer is expected to use no more than this share of its KV caches.",
    "SchedulerSpec.min_flow_share": "`maxflow`: a successor with less than this share of a node's "
    "flow is not used.",
    "SlotArrivalsSpec.slots": "Arrivals as counted.",
    "SlotsSpec.file": "A file with the header `arrivals` and one count a row.",
    "SlotsSpec.length": "Length of a slot.",
    "WorkloadSpec.mode": "`offline`: a closed loop, a request that ends makes room for another. "
    "`online`: requests come when users send them.",
    "engine.schema": "Version of the format.",
    "engine.kind": "Kind of file.",
    "engine.name": "For titles.",
    "engine.machine_types": "Machine type -> what differs for it.",
    "engine.other_machine_types": "For machine types not named in `machine_types`.",
    "engine.valid_for": "Range of what was recorded.",
    "engine.fit": "How well it repeats the runs that it was fitted to, and others.",
    "RecordedFit.run": "Name of the recorded run.",
    "RecordedFit.scenario": "Name of the scenario that was replayed.",
    "RecordedFit.decode_tokens_per_s": "Error of the decode throughput.",
    "RecordedFit.decode_latency_mean": "Error of the mean decode latency.",
    "RecordedFit.decode_latency_p50": "Error of its median.",
    "RecordedFit.decode_latency_p95": "Error of its 95th percentile.",
    "RecordedFit.prompt_latency_mean": "Error of the mean prompt latency.",
    "Validity.machine_types": "Machine types that took part.",
    "Validity.llms": "LLMs that were served.",
    "Validity.max_in_flight": "The most requests on their way at once.",
    "Validity.max_prompt_tokens": "Longest prompt.",
    "Validity.max_context_tokens": "Longest context.",
    "Validity.max_decode_tokens_per_s": "Highest decode throughput over a minute.",
    "llm.schema": "Version of the format.",
    "llm.kind": "Kind of file.",
    "llm.name": "What scenarios and machine files call it.",
    "llm.num_layers": "Number of layers.",
    "llm.bytes_per_value": "Bytes of one value of the hidden state.",
    "sweep.schema": "Version of the format.",
    "sweep.kind": "Kind of file.",
    "machine.schema": "Version of the format.",
    "machine.kind": "Kind of file.",
    "machine.name": "What clusters call it.",
    "machine.memory": "Of the whole machine, all its GPUs together.",
    "machine.llms": "LLM -> how the machine serves it.",
    "BatchLimitsSpec.max_prompts": "Prefills in one batch.",
    "BatchLimitsSpec.max_prompt_tokens": "Tokens of all prefills in one batch; also the longest "
    "prompt that the machine takes.",
    "BatchLimitsSpec.max_decode_tokens": "Decodes in one batch.",
    "CurveSpec.tokens": "Tokens in one batch, rising. Beyond the last, the last two points go on "
    "as a line.",
    "CurveSpec.ms": "Milliseconds of one layer for each of them; linear in between.",
    "PlannerSpec.typical_layers": "Layers that such a machine usually holds; two thirds of "
    "`max_layers` if not given.",
    "PlannerSpec.crowded_typical_layers": "The same where machines are scarce; `max_layers` if not "
    "given.",
    "PlannerSpec.start_performance": "Layers x tokens per millisecond to start the estimate from.",
    "ServingSpec.prefill": "Time of prefills, by the sum of their tokens.",
    "ServingSpec.decode": "Time of decodes, by their number.",
    "ServingSpec.kv": "How much KV cache there is.",
    "ServingSpec.batch_limits": "What fits into one batch.",
    "ServingSpec.planner": "Where the throughput estimate starts.",
}
"""What keys mean where the models do not say; `*` stands for any part."""


def anchors(text: str) -> dict[str, tuple[str, str]]:
    """Key of each table -> (heading above it, anchor of the heading)."""
    found = {}
    for table in TABLE.finditer(text):
        title = HEADING.findall(text[: table.start()])[-1]
        found[table["key"]] = (title, anchor_of(title))
    return found


def anchor_of(title: str) -> str:
    """What a heading is linked to by, as Git forges have it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


class Writer:
    """Writes the tables of one kind of file."""

    def __init__(self, kind: str, places: dict[str, tuple[str, str]]) -> None:
        self.kind = kind
        self.places = places
        whole = json_schema(kind)
        self.parts = {kind: whole, **whole.get("$defs", {})}

    def table(self, part: str) -> str:
        required = self.parts[part].get("required", [])
        rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for key, value in self.parts[part]["properties"].items():
            default = "**required**" if key in required else self.default(value)
            rows.append(
                f"| `{key}` | {self.value(value)} | {default} | {self.meaning(part, key, value)} |"
            )
        return "\n".join(rows) + "\n"

    def meaning(self, part: str, key: str, value: dict) -> str:
        ours = MEANINGS.get(f"{part}.{key}", MEANINGS.get(f"*.{key}"))
        text = value.get("description") or ours
        if text is None:
            raise SystemExit(f"{self.kind}: nothing says what {part}.{key} means")
        return text.replace("->", "→").replace("{i}", "`{i}`").replace("|", "\\|")

    def default(self, value: dict) -> str:
        default = value.get("default")
        if default is None or default in ("", []) or isinstance(default, dict):
            return ""
        if unit := [unit for _, unit in map(quantity, self.choices(value)) if unit]:
            return f"`{default:g} {unit[0]}`"
        if isinstance(default, bool):
            return f"`{str(default).lower()}`"
        return f"`{default}`"

    def choices(self, value: dict) -> list[dict]:
        inner = value.get("oneOf") or value.get("anyOf")
        if inner is None:
            return [] if value.get("type") == "null" else [value]
        return [choice for one in inner for choice in self.choices(one)]

    def value(self, value: dict) -> str:
        return " or ".join(self.one(choice) for choice in self.choices(value))

    def one(self, value: dict) -> str:
        if not set(value) - {"title", "default"}:
            return "any value"
        if "$ref" in value:
            part = value["$ref"].rpartition("/")[2]
            title, anchor = self.places[f"{self.kind}/{part}"]
            return f"[{title[0].lower() + title[1:]}](#{anchor})"
        if "const" in value:
            return f"`{value['const']}`"
        if "enum" in value:
            return ", ".join(f"`{option}`" for option in value["enum"])
        if quantity(value)[0]:
            return quantity(value)[0]
        return self.plain(value)

    def plain(self, value: dict) -> str:
        kind = value["type"]
        if kind == "array" and "prefixItems" in value:
            return f"[{', '.join(self.value(item) for item in value['prefixItems'])}]"
        if kind == "array":
            return f"list of {self.value(value['items'])}"
        if kind == "object":
            (inner,) = value["patternProperties"].values()
            return f"name → {self.value(inner)}"
        if kind == "string":
            named = "name or file" if "maxLength" in value else "name"
            return named if "pattern" in value or "maxLength" in value else "text"
        names = {"boolean": "`true`, `false`", "integer": "whole number", "number": "number"}
        return names[kind] + bounds(value)


def quantity(value: dict) -> tuple[str, str]:
    return QUANTITIES.get(next(iter(value.get("examples", [])), ""), ("", ""))


def bounds(value: dict) -> str:
    limits = [
        f"{sign} {value[key]:,g}" if value[key] < 10 else f"{sign} {value[key]:,.0f}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in value and value[key] < UNBOUNDED
    ]
    return "".join(f", {limit}" for limit in limits)


def filled(text: str) -> str:
    """A page with its tables as they should be."""
    places = anchors(text)
    for key in places:
        kind = key.partition("/")[0]
        missing = {f"{kind}/{part}" for part in json_schema(kind).get("$defs", {})} - set(places)
        if missing:
            raise SystemExit(f"no table for {', '.join(sorted(missing))}")

    def table(found: re.Match[str]) -> str:
        kind, _, part = found["key"].partition("/")
        return found["key"] + found["start"] + Writer(kind, places).table(part or kind)

    return nearness(TABLE.sub(table, text))


def nearness(text: str) -> str:
    """A page with the tables of how near built-in workloads come, from the docstrings."""

    def table(found: re.Match[str]) -> str:
        source = import_module(f"helixsim.traces.{found['name']}").__doc__
        block = dedent(source.partition(".. code-block:: text\n")[2]).strip("\n")
        return f"{found['name']}{found['start']}```text\n{block}\n```\n"

    return NEARNESS.sub(table, text)


def check_kinds(texts: list[str]) -> None:
    """Every kind of file is documented, by itself or as the part of a scenario that it equals."""
    documented = {key for text in texts for key in anchors(text)}
    for kind in FILE_KINDS:
        if kind not in SAME_AS:
            if kind not in documented:
                raise SystemExit(f"no table for {kind} files")
            continue
        own = json_schema(kind)["properties"]
        part = json_schema("scenario")["$defs"][SAME_AS[kind]]["properties"]
        if set(own) != {"schema", "kind", *part}:
            raise SystemExit(f"a {kind} file does not hold what {SAME_AS[kind]} does")


def main() -> None:
    pages = sorted(DOCS.glob("*.md"))
    check_kinds([page.read_text("utf-8") for page in pages])
    for page in pages:
        text = page.read_text("utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, "utf-8")
            print(f"wrote {page.name}")


if __name__ == "__main__":
    main()
