"""L-infinity budgets: exact fractions of the pixel range, read from numbers or text and written as text."""

from __future__ import annotations

from fractions import Fraction

from paperlib.errors import InputError


def budget_text(value: Fraction | float) -> str:
    """An L-infinity budget as text: a short decimal if that is exact, else k/255 if that is exact, else the fraction.

    Fractions are never rounded (``1/510`` stays ``1/510``). A float is read as the nearest fraction with a denominator
    up to 100,000.
    """
    exact = value if isinstance(value, Fraction) else Fraction(value).limit_denominator(100_000)
    if (exact * 1000).denominator != 1 and (exact * 255).denominator == 1:
        return f"{int(exact * 255)}/255"
    decimal = f"{float(exact):g}"
    return decimal if Fraction(decimal) == exact else str(exact)


def as_budget(value: float | str | Fraction, name: str = "eps") -> float:
    """An L-infinity budget in pixels of [0, 1], from a float or from text such as ``"8/255"`` or ``"0.03"``.

    Raises:
        InputError: not a number, negative, NaN, or above 1 (such as 8 in place of 8/255).
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(Fraction(value)) if isinstance(value, str | Fraction) else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f'{name}: expected a float or text such as "8/255", got {value!r}') from error
    if number > 1:
        raise InputError(f"{name}={value}: pixels are in [0, 1], so {name} cannot exceed 1; did you mean {value}/255?")
    if not number >= 0:
        raise InputError(f"{name}={value}: must be a number from 0 to 1")
    return number


def as_fraction(value: float | str | Fraction, name: str = "eps") -> Fraction:
    """An L-infinity budget as an exact fraction; a float becomes the nearest one with a denominator up to 10^6.

    Raises InputError as `as_budget` does.
    """
    as_budget(value, name)
    return Fraction(value) if isinstance(value, str | Fraction) else Fraction(float(value)).limit_denominator(10**6)


Budget = float | str | Fraction
