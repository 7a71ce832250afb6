"""Settings of Python's garbage collector for processes that serve without end."""

from __future__ import annotations

import gc

_ALLOCATIONS = 50_000
_YOUNGER_COLLECTIONS = 20


def collect_rarely() -> None:
    """Leave what exists now out of collections, and collect cycles less often.

    Every token makes a few objects, which end without a collection; by default, a full collection
    follows every 70,000 of them that are kept for a moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, _YOUNGER_COLLECTIONS, _YOUNGER_COLLECTIONS)
