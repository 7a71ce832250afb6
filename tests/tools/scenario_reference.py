"""Writes the tables of keys in docs/ from the models that check the files.

A table stands between two comments, ``<!-- keys: KIND -->`` or ``<!-- keys: KIND/PART -->`` and
``<!-- end of keys -->``, where KIND is a kind of file and PART a part of it (a model's name). A
part is linked to by the heading above its table. The tables of docs/traces.md, between
``<!-- table: NAME -->`` and ``<!-- end of table -->``, come from docstrings; the table between
``<!-- shipped LLMs -->`` and ``<!-- end of shipped LLMs -->`` from the shipped configurations. Run
from the project root::

    PYTHONPATH=. python tests/tools/scenario_reference.py

Fails if a part of a kind has no table, or a key has no description.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from textwrap import dedent

from helixsim.llms.description import CATALOGUE_HEAD, catalogue_rows
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
SHIPPED_LLMS = re.compile(
    r"(?<=<!-- shipped LLMs -->\n).*?(?=<!-- end of shipped LLMs -->)", re.DOTALL
)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

SAME_AS = {"cluster": "ClusterSpec", "generator": "GeneratorSpec", "placement": "PlacementSpec"}
"""Kinds of file that hold the keys of a part of a scenario, and `schema` and `kind`."""

QUANTITIES = {"1 ms": ("time", "s"), "24 GB": ("size", "B"), "10 Gbit/s": ("bandwidth", "B/s")}
"""Example in the schema -> (what it is an example of, base unit)."""

UNBOUNDED = 2**53

json_schema = cache(schema.json_schema)
CATALOGUE = cache(catalogue_rows)

MEANINGS = {
    "scenario.schema": "Version of the format.",
    "scenario.name": "Name, for titles and results.",
    "scenario.cluster": "The machines and the network.",
    "scenario.scheduler": "Settings of admission, routing and batching.",
    "scenario.workload": "Requests of the users: lengths and arrival times.",
    "scenario.faults": "Failures of nodes; see [physics](physics.md#faults-waiting-chunks).",
    "scenario.physics": "Performance model of the simulator; see [physics](physics.md).",
    "scenario.run": "Duration, warm-up, seed and sampling.",
    "*.description": "Free text.",
    "BandwidthSpreadSpec.mean": "Middle of the range.",
    "BandwidthSpreadSpec.spread": "Half the width of the range; below the mean.",
    "LatencySpreadSpec.mean": "Middle of the range.",
    "LatencySpreadSpec.spread": "Half the width of the range; at most the mean.",
    "ClusterInFile.file": "A cluster file, relative to the scenario's folder.",
    "ClusterSpec.coordinator": "The machine at which every route starts and ends; or several "
    "[front ends](#several-front-ends), of which the first is the coordinator.",
    "ClusterSpec.nodes": "The machines, one by one or by group. Their order breaks ties.",
    "ClusterSpec.network": "The links between the machines.",
    "CoordinatorSpec.nic": "Network interface: one bandwidth for both directions, or one for each.",
    "CoordinatorSpec.region": "Its region.",
    "GammaArrivalsSpec.gamma": "Gaps between arrivals are gamma-distributed.",
    "GeneratorSpec.coordinator": "The machine at which every route starts and ends, or several.",
    "GeneratorSpec.network": "The links between the machines.",
    "GeneratorSpec.seed": "Random seed of the order of the nodes and of values with a spread.",
    "KvSpec.high_water_mark": "Admission limit: the largest share of a node's KV cache that may be "
    "expected to be in use.",
    "KvSpec.expected_output_ratio": "Expected output tokens of a request, as a multiple of "
    "`workload.mean_output_tokens`.",
    "LinkSpec.from": "The sending machine, for one direction; needs `to`.",
    "LinkSpec.to": "The receiving machine, for one direction; needs `from`.",
    "*.bandwidth": "Bandwidth of a link.",
    "*.latency": "Propagation time of each message.",
    "NicSpec.inbound": "Bandwidth for receiving.",
    "NicSpec.outbound": "Bandwidth for sending.",
    "NodeSpec.count": "Number of identical nodes.",
    "NodeSpec.region": "Region of the nodes.",
    "PlacementInFile.file": "A placement file, relative to the scenario's folder.",
    "RegionRuleSpec.between": "The two regions; the same region twice for links within it.",
    "RunSpec.seed": "Seed of all randomness in the run.",
    "SchedulerSpec.policy": "Routing policy; see [physics](physics.md#scheduling).",
    "SchedulerSpec.kv": "Admission by expected KV cache use (`maxflow`).",
    "SchedulerSpec.feed_high_water_mark": "Offline, `maxflow`: the load generator sends "
    "more requests while the expected KV cache use of the fullest layer is at most this share.",
    "SchedulerSpec.min_flow_share": "`maxflow`: successors with less than this share of a node's "
    "flow are ignored.",
    "SlotArrivalsSpec.slots": "Counts of arrivals in slots of time.",
    "SlotsSpec.file": "A file with the header `arrivals` and one count per row.",
    "SlotsSpec.length": "Length of a slot.",
    "WorkloadSpec.mode": "`offline`: a closed loop; the end of a request triggers "
    "another. `online`: an open loop; requests arrive at given times.",
    "engine.schema": "Version of the format.",
    "engine.kind": "Kind of file.",
    "engine.name": "Name, for titles.",
    "engine.machine_types": "Machine type -> costs that are specific to it.",
    "engine.other_machine_types": "Costs of machine types that are not in `machine_types`.",
    "engine.valid_for": "Range of the recorded runs.",
    "engine.fit": "Errors for the runs of the fit and for held-out runs.",
    "RecordedFit.run": "Name of the recorded run.",
    "RecordedFit.scenario": "Name of the scenario that was replayed.",
    "RecordedFit.decode_tokens_per_s": "Error of the decode throughput.",
    "RecordedFit.decode_latency_mean": "Error of the mean decode latency.",
    "RecordedFit.decode_latency_p50": "Error of its median.",
    "RecordedFit.decode_latency_p95": "Error of its 95th percentile.",
    "RecordedFit.prompt_latency_mean": "Error of the mean prompt latency.",
    "KnownRange.machine_types": "Machine types in the recorded runs.",
    "KnownRange.llms": "LLMs in the recorded runs.",
    "KnownRange.max_in_flight": "The most requests in flight.",
    "KnownRange.max_prompt_tokens": "Longest prompt.",
    "KnownRange.max_context_tokens": "Longest context.",
    "KnownRange.max_decode_tokens_per_s": "Highest decode throughput over a minute.",
    "llm.schema": "Version of the format.",
    "llm.kind": "Kind of file.",
    "llm.name": "Name, for scenarios and machine files.",
    "llm.num_layers": "Number of layers.",
    "llm.bytes_per_value": "Bytes of one value of the hidden state.",
    "sweep.schema": "Version of the format.",
    "sweep.kind": "Kind of file.",
    "gpu.schema": "Version of the format.",
    "gpu.kind": "Kind of file.",
    "gpu.name": "Name, for scenarios.",
    "InterconnectSpec.kind": "What joins the GPUs.",
    "machine.schema": "Version of the format.",
    "machine.kind": "Kind of file.",
    "machine.name": "Name, for clusters.",
    "machine.memory": "Memory of all GPUs of the machine.",
    "machine.llms": "LLM -> latency profile, KV cache and batch limits.",
    "BatchLimitsSpec.max_prompts": "The most prefills in one batch.",
    "BatchLimitsSpec.max_prompt_tokens": "The most prompt tokens in one batch; also the longest "
    "prompt (or chunk) that the machine accepts.",
    "BatchLimitsSpec.max_decode_tokens": "The most decodes in one batch.",
    "CurveSpec.tokens": "Tokens in one batch, increasing. Beyond the last point, the line "
    "through the last two points is extrapolated.",
    "CurveSpec.ms": "Milliseconds of one layer at each point; linear interpolation in between.",
    "PlannerSpec.typical_layers": "Typical number of layers on such a machine. Default: "
    "two thirds of "
    "`max_layers`.",
    "PlannerSpec.crowded_typical_layers": "The same in clusters with few machines. Default: "
    "`max_layers`.",
    "PlannerSpec.start_performance": "Initial value of the estimate, in layers x tokens per "
    "millisecond.",
    "ServingSpec.prefill": "Time of prefills as a function of their total tokens. Needed without "
    "`operators`.",
    "ServingSpec.decode": "Time of decodes as a function of their number. Needed without "
    "`operators`.",
    "ServingSpec.kv": "Capacity of the KV cache.",
    "ServingSpec.batch_limits": "Limits of one batch.",
    "ServingSpec.planner": "Inputs of the throughput estimate.",
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
            raise SystemExit(f"{self.kind}: {part}.{key} has no description")
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
            # "KV cache" keeps its capitals.
            shown = title if title[1].isupper() else title[0].lower() + title[1:]
            return f"[{shown}](#{anchor})"
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
            if "enum" in value.get("propertyNames", {}):
                keys = ", ".join(f"`{key}`" for key in value["propertyNames"]["enum"])
                return f"{keys} → {self.value(value['additionalProperties'])}"
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

    return shipped_llms(nearness(TABLE.sub(table, text)))


def shipped_llms(text: str) -> str:
    """A page with its table of the LLMs whose config.json ships."""
    rows = [CATALOGUE_HEAD, ["---"] * len(CATALOGUE_HEAD), *CATALOGUE()]
    lines = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return SHIPPED_LLMS.sub(lambda _: lines, text)


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
