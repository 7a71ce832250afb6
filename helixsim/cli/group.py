"""Parts that all commands share: exit codes of errors, common options."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from helixsim.errors import HelixError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def _note(  # as :func:`warnings.showwarning`
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; the place in the code is of no use to a user of a command."""
    typer.echo(f"note: {message}", err=True)


class HelixGroup(TyperGroup):
    """Turns a :class:`HelixError` into a message and an exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  (typer's own signature)
        """Run the command."""
        warnings.showwarning = _note
        try:
            return super().invoke(ctx)
        except HelixError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(EXIT_ERROR) from error
        except BrokenPipeError as error:
            # The reader of the output has closed the pipe; Python must not write to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from error
        except OSError as error:
            typer.echo(f"{error.filename or 'error'}: {error.strerror or error}", err=True)
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


ScenarioArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="Scenario file, or name of a shipped scenario.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help='Set a value, for example run.seed=1 or run.duration="120 s". Repeatable.',
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def seconds_of(text: str, option: str) -> float:
    """The value of an option that is a time; an error names the option."""
    from helixsim.errors import InputError
    from helixsim.units import seconds

    try:
        return seconds(text)
    except InputError as error:
        raise InputError(error.message, where=option) from error
