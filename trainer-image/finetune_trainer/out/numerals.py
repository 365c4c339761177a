"""Numbers as the page writes them: few digits, a true minus, units that a person reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\u2212"
LARGEST, SMALLEST = 1e6, 1e-4
"""Beyond these a number is written with an exponent."""
NOTHING = 1e-12
"""What is smaller is rounding."""
MOST_DECIMALS = 4
"""Of values in a column, or at an axis."""


def number(value: float, digits: int = 4) -> str:
    """`value` in `digits` significant digits: 0.4123, −12.30, 2e−5; an integer in full: 1,024."""
    if value == 0 or abs(value) < NOTHING:
        return "0"
    if isinstance(value, int) and abs(value) < LARGEST:
        text = f"{value:,}"
    elif SMALLEST <= abs(value) < LARGEST:
        power = int(f"{value:.{digits - 1}e}".partition("e")[2])
        text = f"{value:,.{max(0, digits - 1 - power)}f}"
    else:
        mantissa, _, exponent = f"{value:.{max(0, digits - 2)}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS)


def evenly(values: Sequence[float]) -> list[str]:
    """Values at equal distances, all with as many decimals as tell them apart: 0.5, 1.0, 1.5."""
    if len(values) < 2:
        return [number(value, 3) for value in values]
    decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    if decimals > MOST_DECIMALS:
        return [number(value, 3) for value in values]
    return ["0" if value == 0 else f"{value:,.{decimals}f}".replace("-", MINUS) for value in values]


def signed(value: float, digits: int = 3) -> str:
    """`value` with its sign: +1.32, −0.04, 0."""
    text = number(value, digits)
    return text if text == "0" or text.startswith(MINUS) else f"+{text}"


def aligned(value: float, largest: float) -> str:
    """`value` with its sign, and as many decimals as all have of which `largest` is the largest."""
    decimals = min(MOST_DECIMALS, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 0
    return f"{value:+,.{decimals}f}".replace("-", MINUS)


def percent(share: float) -> str:
    """A share of 1: 81.3 %."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def size(count: int) -> str:
    """Bytes in powers of 1024: 12.4 MiB."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def counted(count: int, what: str) -> str:
    """`count` things: 1 pair, 1,024 pairs."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
