"""The command line ``helixreal``: combines the modules of its commands."""

from __future__ import annotations

import typer

from helixreal.cli import front_end, profile, replay, run, serve, workers
from helixsim.cli.group import HelixGroup

app = typer.Typer(
    name="helixreal",
    cls=HelixGroup,
    help="Serve a scenario with real processes: a coordinator, workers and engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command("run")(run.run)
app.command("replay")(replay.replay)
app.command("coordinator")(run.coordinator)
app.command("serve")(serve.serve)
app.command("front-end")(front_end.front_end)
app.command("worker")(workers.worker)
app.command("up")(workers.up)
app.command("down")(workers.down)
app.command("keys")(workers.keys)
app.command("profile")(profile.profile)


def main() -> None:
    """Run the command line."""
    app()
