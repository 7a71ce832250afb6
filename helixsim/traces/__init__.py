"""Workloads: read them, generate them, change them, write them.

- Read a trace in a known format (Azure, Mooncake, Qwen-Bailian, BurstGPT, Vidur, LLMServingSim,
  results of `vllm bench serve`; for lengths, ShareGPT), detected by its content:
  :func:`read_trace`, :func:`read_lengths`, :func:`read_slot_arrivals`.
- Generate one: arrivals from :func:`poisson`, :func:`gamma`, :func:`in_slots`, a built-in
  :func:`arrival_pattern`, or :func:`at_rate` for a rate that varies (:class:`DailyRate`,
  :class:`SteppedRate`, :func:`bursts`); lengths from a file, a built-in :func:`length_model`, or
  distributions (:class:`IndependentLengths` of :func:`lognormal_of_mean` and others); combined by
  :func:`generate_trace`. All randomness comes from the caller's `random.Random`.
- Change it: :meth:`Trace.scaled`, :meth:`Trace.scaled_to`, :meth:`Trace.between`,
  :meth:`Trace.limited`, :meth:`Trace.from_first`, :meth:`Trace.repeated`.
- Write it; it reads back exactly: :func:`write_trace`, :func:`write_lengths`.

.. code-block:: python

    rng = random.Random(0)
    lengths = length_model("azure-conversation").limited(max_prompt_tokens=2048)
    arrivals = arrival_pattern("azure-code").arrivals(rng, rate_per_s=2.0)
    trace = generate_trace(arrivals, lengths, duration_s=600, rng=rng)
    write_trace(trace, "bursty.csv.gz")
"""

from helixsim.traces.arrivals import SLOT_S, gamma, generate_trace, in_slots, poisson
from helixsim.traces.distributions import (
    Empirical,
    Fixed,
    Uniform,
    lognormal_of_mean,
    lognormal_of_median,
)
from helixsim.traces.files import TIME_UNITS, read_lengths, read_slot_arrivals, read_trace
from helixsim.traces.formats import TRACE_FORMATS, Format, Holds
from helixsim.traces.lengths import IndependentLengths, LengthModel, length_model, length_models
from helixsim.traces.patterns import ARRIVAL_PATTERNS, ArrivalPattern, arrival_pattern
from helixsim.traces.rates import ConstantRate, DailyRate, SteppedRate, at_rate, bursts
from helixsim.traces.values import Lengths, LengthSource, Trace
from helixsim.traces.writers import write_lengths, write_trace

__all__ = [
    "ARRIVAL_PATTERNS",
    "SLOT_S",
    "TIME_UNITS",
    "TRACE_FORMATS",
    "ArrivalPattern",
    "ConstantRate",
    "DailyRate",
    "Empirical",
    "Fixed",
    "Format",
    "Holds",
    "IndependentLengths",
    "LengthModel",
    "LengthSource",
    "Lengths",
    "SteppedRate",
    "Trace",
    "Uniform",
    "arrival_pattern",
    "at_rate",
    "bursts",
    "gamma",
    "generate_trace",
    "in_slots",
    "length_model",
    "length_models",
    "lognormal_of_mean",
    "lognormal_of_median",
    "poisson",
    "read_lengths",
    "read_slot_arrivals",
    "read_trace",
    "write_lengths",
    "write_trace",
]
