"""Kubernetes quantities as numbers, to compare what a job asks for with what a runtime allows."""

from __future__ import annotations

from decimal import Decimal

SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
}


def amount(quantity: int | str) -> Decimal:
    """The value of a quantity of the contract (already validated): cores, or bytes."""
    text = str(quantity)
    number = text.rstrip("mkMGTi")
    return Decimal(number) * SUFFIXES[text[len(number) :]]
