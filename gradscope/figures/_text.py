"""Numbers and names as a reader wants them: 1.2×10⁻¹³, and long module paths made short."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN_SPACE = "\u202f"


def superscript(exponent: int) -> str:
    """-13 → ⁻¹³."""
    return str(exponent).translate(_SUPERSCRIPT)


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, in the notation of a printed table.

    >>> number(1.2e-13), number(0.84213), number(12800), number(float("nan"))
    ('1.2×10⁻¹³', '0.842', '12\u202f800', 'NaN')
    """
    if isinstance(value, int):
        return _grouped(f"{value:,d}")
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if power < -3 or power > 5:
        return f"{_trimmed(mantissa)}×10{superscript(power)}"
    if power >= digits - 1:
        return _grouped(f"{value:,.0f}")
    return _trimmed(f"{value:.{digits - 1 - power}f}")


def aligned(value: float) -> str:
    """A number in a column of such: three decimals where these say something."""
    if 0.01 <= abs(value) < 100:
        return f"{value:.3f}".replace("-", "−")
    return number(value)


def _grouped(text: str) -> str:
    # Four digits are read at a glance; a space in them would only tear them apart.
    plain = text.replace(",", "")
    return (text.replace(",", _THIN_SPACE) if len(plain.lstrip("-")) > 4 else plain).replace(
        "-", "−"
    )


def _trimmed(text: str) -> str:
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "−")


_EXPONENT = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)e([+-]?\d+)(?![\w.]*\w)")
_POWER = re.compile(r"(?<![\w.])10\^(-?\d+)")


def pretty(text: str) -> str:
    """Prose with its numbers as `number` writes them: 5.3e-04 → 5.3×10⁻⁴, 10^-3 → 10⁻³."""
    text = _EXPONENT.sub(lambda m: f"{_trimmed(m[1])}×10{superscript(int(m[2]))}", text)
    return _POWER.sub(lambda m: f"10{superscript(int(m[1]))}", text)


def shorten(name: str, width: int) -> str:
    """A module path of at most `width` characters, shortened in the middle.

    Whole components go first, and numbers last: in `encoder.layers.11.mlp.fc1` it is the 11
    that tells one row from the next.

    >>> shorten("model.vision_tower.encoder.layers.11.self_attn.out_proj", 32)
    '…layers.11.self_attn.out_proj'
    """
    if len(name) <= width:
        return name
    parts = name.split(".")
    kept = [True] * len(parts)
    text = name
    for i in sorted(range(len(parts) - 1), key=lambda i: _worth(parts, i)):
        if parts[i].isdigit():
            break
        kept[i] = False
        text = _elided(parts, kept)
        if len(text) <= width:
            return text
    return _cut(text, width)


def _worth(parts: list[str], i: int) -> tuple[int, float]:
    """What a component of a path tells a reader: the least goes first."""
    if parts[i].isdigit():
        rank = 4
    elif any(p.isdigit() for p in parts[:i]):
        rank = 3  # which part of the layer
    elif parts[i + 1].isdigit():
        rank = 2  # the word that says what is numbered
    else:
        rank = 1 if i == 0 else 0
    return rank, abs(i - len(parts) / 2)


def _cut(text: str, width: int) -> str:
    head = max(1, (width - 1) * 2 // 5)
    return text if len(text) <= width else f"{text[:head]}…{text[len(text) - width + head + 1 :]}"


def _elided(parts: list[str], kept: list[bool]) -> str:
    text = ""
    for i, part in enumerate(parts):
        if not kept[i]:
            text += "" if text.endswith("…") else "…"
        else:
            text += f".{part}" if text and not text.endswith("…") else part
    return text


def shorten_all(names: Iterable[str], width: int) -> list[str]:
    """`shorten` for each name, told apart: names that would look the same keep both ends, or
    stay whole where even these are the same."""
    full = list(names)
    short = [shorten(n, width) for n in full]
    for other in (lambda name: _cut(name, width), str):
        taken: dict[str, set[str]] = {}
        for name, text in zip(full, short, strict=True):
            taken.setdefault(text, set()).add(name)
        short = [
            text if len(taken[text]) == 1 else other(name)
            for name, text in zip(full, short, strict=True)
        ]
    return short


def distinct(names: Iterable[str]) -> list[str]:
    """What tells names apart: without the words that all of them begin or end with.

    >>> distinct(["san × 6, seed 0", "sla × 6, seed 0"])
    ['san', 'sla']
    """
    words = [name.split() or [name] for name in names]
    while len(words) > 1 and all(len(w) > 1 for w in words) and len({w[-1] for w in words}) == 1:
        words = [w[:-1] for w in words]
    while len(words) > 1 and len({w[0] for w in words}) == 1:
        rest = [w[1:] for w in words]
        if not all(any(c.isalpha() for c in " ".join(w)) for w in rest):
            break  # a bare number says too little
        words = rest
    return [" ".join(w).rstrip(" ,;:×-") or " ".join(w) for w in words]


def printable(text: str) -> str:
    """Text without control characters, which would move a cursor or break a line."""
    return "".join(c if c.isprintable() or c == "\u202f" else "�" for c in text)


def plain(text: str) -> str:
    """Text for matplotlib, where `$…$` starts a formula and a legend omits what starts with _."""
    text = printable(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
