"""Plots of results, for notebooks and reports: one function a picture, matplotlib figures out.

Each takes results: of :func:`helixsim.simulate`, or read by
:func:`helixsim.load_results`; or a mapping of names to several of them, which are
compared.
"""

from __future__ import annotations

from helixsim.plots.comparison import comparison
from helixsim.plots.curves import latencies, throughput
from helixsim.plots.heat_maps import congestion, kv_use, queues, utilisation
from helixsim.plots.node_timeline import node_timeline
from helixsim.plots.pictures import PICTURES, TRACE_PICTURES

__all__ = [
    "PICTURES",
    "TRACE_PICTURES",
    "comparison",
    "congestion",
    "kv_use",
    "latencies",
    "node_timeline",
    "queues",
    "throughput",
    "utilisation",
]
