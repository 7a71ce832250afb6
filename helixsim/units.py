"""Quantities with units, as users write them: ``10 Gbit/s``, ``1 ms``, ``24 GB``.

All values inside helixsim are in SI base units (bytes, seconds), and names contain the unit.
Only this module converts text to numbers. Bits and bytes are different units:
``10 Gbit/s`` is 1.25e9 bytes per second, ``10 GB/s`` is 1e10. A number without a required unit
is refused, because it would be ambiguous.

Pint converts the units, with a registry that contains only units of data and time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING

from helixsim.errors import InputError

if TYPE_CHECKING:
    import pint

_DEFINITIONS = """
second = [time] = s = sec = seconds
minute = 60 * second = min = minutes
hour = 3600 * second = h = hr = hours
day = 86400 * second = d = days
bit = [data] = _ = bits
byte = 8 * bit = B = bytes
nano- = 1e-9 = n-
micro- = 1e-6 = µ- = u-
milli- = 1e-3 = m-
kilo- = 1e3 = k- = K-
mega- = 1e6 = M-
giga- = 1e9 = G-
tera- = 1e12 = T-
kibi- = 1024 = Ki-
mebi- = 1048576 = Mi-
gibi- = 1073741824 = Gi-
tebi- = 1099511627776 = Ti-
bps = bit / second
Bps = byte / second
"""


QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?) ?([A-Za-zµ]+( ?/ ?[A-Za-z]+)?)$"
"""One number and one unit. Pint alone would also read ``1,5 s`` as 15 s, and evaluate sums."""


class Dimension(Enum):
    """Dimension of a quantity: its SI base unit and an example."""

    TIME = ("second", "1 ms")
    DATA = ("byte", "24 GB")
    BANDWIDTH = ("byte / second", "10 Gbit/s")

    @property
    def unit(self) -> str:
        """The base unit, in Pint's spelling."""
        return self.value[0]

    @property
    def example(self) -> str:
        """An example of such a quantity in a user's spelling."""
        return self.value[1]


# Pint gives the same numbers (a test compares them), but its import takes a third of a second.
# Scenarios with only these units do not need it.
_COMMON_UNITS: Mapping[Dimension, Mapping[str, float]] = {
    Dimension.TIME: {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0},
    Dimension.DATA: {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    Dimension.BANDWIDTH: {
        "B/s": 1.0,
        "kB/s": 1e3,
        "MB/s": 1e6,
        "GB/s": 1e9,
        "bit/s": 0.125,
        "kbit/s": 0.125e3,
        "Mbit/s": 0.125e6,
        "Gbit/s": 0.125e9,
    },
}


@cache
def _registry() -> pint.UnitRegistry[float]:
    import pint

    # Some versions of Pint have units before any are defined, and would warn of ours.
    registry: pint.UnitRegistry[float] = pint.UnitRegistry(None, on_redefinition="ignore")
    for line in _DEFINITIONS.strip().splitlines():
        registry.define(line)
    return registry


@cache
def parse_quantity(text: str, dimension: Dimension) -> float:
    """Turn a quantity as a user writes it into a number in the dimension's base unit.

    Parameters
    ----------
    text
        A number and a unit, for example ``"10 Gbit/s"``.
    dimension
        The expected dimension.

    Returns
    -------
    float
        Seconds, bytes, or bytes per second; finite and not negative.

    Raises
    ------
    InputError
        If the text is no such quantity.
    """
    hint = f"write a number and a unit, such as '{dimension.example}'"
    match = re.fullmatch(QUANTITY_PATTERN, text, re.ASCII) if len(text) <= 64 else None
    if match is None:
        raise InputError(f"'{text[:64]}' is not a quantity; {hint}")
    if dimension is not Dimension.TIME and re.match(r"\s*(m|u|µ|n)(?!in)", match[4]):
        raise InputError(
            f"'{text}' has a prefix below one; a million is M, as in '{dimension.example}'"
        )
    factor = _COMMON_UNITS[dimension].get(match[4].replace(" ", ""))
    if factor is not None:
        value = float(match[1]) * factor
    else:
        try:
            value = float(_registry().Quantity(text).to(dimension.unit).magnitude)
        except (
            Exception
        ) as error:  # Pint raises many kinds of errors; all of them mean an invalid quantity
            message = f"'{text}' is not a {dimension.name.lower()} quantity; {hint}"
            raise InputError(message) from error
    if not math.isfinite(value) or value < 0:
        raise InputError(f"'{text}' must be a finite quantity of at least zero; {hint}")
    return value


def seconds(text: str) -> float:
    """Parse a time, ``"1 ms"`` -> 0.001."""
    return parse_quantity(text, Dimension.TIME)


def seconds_from_ms(milliseconds: float) -> float:
    """Convert a measured time in milliseconds, 1.4 -> 0.0014.

    The published simulator multiplies. A division would change the last bits, and thus the
    order of ties.
    """
    return milliseconds * 0.001


def num_bytes(text: str) -> float:
    """Parse an amount of data, ``"24 GB"`` -> 24e9."""
    return parse_quantity(text, Dimension.DATA)


def bytes_per_s(text: str) -> float:
    """Parse a bandwidth, ``"10 Gbit/s"`` -> 1.25e9."""
    return parse_quantity(text, Dimension.BANDWIDTH)


def format_seconds(value: float) -> str:
    """Write a time so that it parses back to exactly the same number."""
    if value and value < 1 and (milli := float(f"{value * 1e3:.12g}")) * 1e-3 == value:
        text = f"{milli:g} ms"
        if seconds(text) == value:
            return text
    return f"{_shortest(value)} s"


def format_bytes_per_s(value: float) -> str:
    """Write a bandwidth so that it parses back to exactly the same number."""
    for factor, unit in ((1e9, "GB/s"), (1e6, "MB/s")):
        text = f"{_shortest(value / factor)} {unit}"
        if value >= factor and bytes_per_s(text) == value:
            return text
    return f"{_shortest(value)} B/s"


def _shortest(value: float) -> str:
    """The shortest decimal that is exactly this number."""
    return repr(value).removesuffix(".0")
