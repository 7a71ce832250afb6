"""Nodes and links over time, as heat maps: a row for each, from the busiest down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helixsim.metrics.result import RunResult
from helixsim.plots.canvas import since_warmup, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_MAX_ROWS = 60
"""With more rows, the busiest are shown."""
_MAX_COLUMNS = 200


def utilisation(result: RunResult) -> Figure:
    """Share of time that each node computes."""
    frame = result.nodes
    values = frame.assign(value=frame["utilisation"].clip(0, 1))
    return _heat_map(result, values, "node", "Utilisation of nodes", "share of time", most=1.0)


def kv_use(result: RunResult) -> Figure:
    """Share of each node's KV cache that is in use."""
    frame = result.nodes
    share = frame["kv_used_token_layers"] / frame["kv_capacity_token_layers"]
    most = max(1.0, float(share.max())) if len(share) else 1.0
    values = frame.assign(value=share)
    return _heat_map(result, values, "node", "KV cache in use", "share of capacity", most=most)


def queues(result: RunResult) -> Figure:
    """Requests that wait at each node for a batch."""
    frame = result.nodes
    values = frame.assign(value=frame["waiting"].astype(float))
    return _heat_map(result, values, "node", "Queues", "requests waiting")


def congestion(result: RunResult) -> Figure:
    """Seconds that each link needs to send its queue."""
    frame = result.links
    values = frame.assign(
        value=frame["backlog_s"], link=frame["source"] + " \N{RIGHTWARDS ARROW} " + frame["target"]
    )
    return _heat_map(result, values, "link", "Congestion of links", "s of backlog")


def _heat_map(
    result: RunResult,
    frame: pd.DataFrame,
    row: str,
    title: str,
    unit: str,
    most: float | None = None,
) -> Figure:
    import seaborn as sns
    from matplotlib.figure import Figure

    times = since_warmup(frame, result).round(6)
    # Means over as many intervals as leave the columns wide enough to see.
    order = {time: place for place, time in enumerate(sorted(set(times)))}
    width = -(-len(order) // _MAX_COLUMNS) or 1
    column = times.map(lambda time: order[time] // width)
    table = frame.pivot_table(index=row, columns=column, values="value", aggfunc="mean", sort=False)
    starts = times.groupby(column).min()
    busiest = table.mean(axis=1).sort_values(ascending=False, kind="stable").index
    num_rows = len(busiest)
    table = table.loc[busiest[:_MAX_ROWS]]
    with style():
        figure = Figure(figsize=(11, 1.3 + 0.17 * max(len(table), 6)), layout="constrained")
        ax = figure.subplots()
        if table.empty:
            ax.text(0.5, 0.5, "nothing was sampled", ha="center", transform=ax.transAxes)
            return figure
        top = most or float(table.to_numpy().max()) or 1.0
        sns.heatmap(
            table,
            ax=ax,
            vmin=0,
            vmax=top,
            cmap="rocket_r",
            cbar_kws={"label": unit, "pad": 0.01},
            yticklabels=True,
            rasterized=True,
        )
        step = max(len(table.columns) // 10, 1)
        places = range(0, len(table.columns), step)
        ax.set_xticks(
            [place + 0.5 for place in places],
            [f"{starts.iloc[place]:.0f}" for place in places],
            rotation=0,
        )
        ax.tick_params(axis="y", labelsize=7, rotation=0)
        shown = f", the busiest {_MAX_ROWS} of {num_rows}" if num_rows > _MAX_ROWS else ""
        ax.set(title=title + shown, xlabel="time since warm-up, s", ylabel="")
    return figure
