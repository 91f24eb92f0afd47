r"""What a response says the answer is: its last number, its last words, a tagged section.

Owns the reading of text, and these decisions about numbers. Read are `1234`, `1,234.5` (a comma separates thousands
where three digits follow, and is no decimal point), `.5`, `-5`, `2.5e-3`, `3/4`, `1 1/2`, `\frac{3}{4}`, and a number
with a currency sign in front or a unit behind. A minus behind a digit or a bracket subtracts and is no sign. `12%` is
12 or 0.12, as asked for. Not read are numbers in words, inside words (`x86`) or with two points (`1.2.3`), and of
`3 x 10^5` only the 5. Which score an answer gets is `reward.rules`.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

Percent = Literal["ignored", "hundredths"]

_LATEX_FRACTION = re.compile(r"(?P<digit>[0-9])?\\[dt]?frac\{(?P<n>[0-9]+)\}\{(?P<d>[0-9]+)\}")
# Runs of digits are bounded, because a response may hold thousands of them, and an exponent, because 1e99999999 is one
# number with as many digits.
_NUMBER = re.compile(
    r"""
    (?<!\w)(?<![0-9]\.)                                 # not inside a word or a longer number
    (?:(?<![)\]])(?P<sign>[-+\u2212]))?[$€£]?           # people do write the typographic minus
    (?:
        (?<!/)
        (?:(?P<whole>[0-9]{1,40})\ )?
        (?P<numerator>[0-9]{1,40})\ ?/\ ?(?P<denominator>[0-9]{1,40})(?!/)
      | (?P<decimal>
          (?: [0-9]{1,3}(?:,[0-9]{3}){1,13}(?:\.[0-9]{1,40})?
            | [0-9]{1,40}(?:\.[0-9]{1,40})?
            | (?<!\.)\.[0-9]{1,40}
          )
          (?:[eE][-+]?[0-9]{1,3})?
        )
    )
    (?!\.?[0-9]|[eE][-+]?[0-9])                         # nor only its beginning
    (?P<percent>\s?\\?%)?
    """,
    re.VERBOSE,
)
_AROUND_AN_ANSWER = " \t\r\n.!?\"'*()[]{}`"
_MINUSES = ("-", "\N{MINUS SIGN}")
_INSIDE_A_NUMBER = (*_MINUSES, "+", ".", ",", "/")


def last_number(text: str, *, percent: Percent) -> Fraction | None:
    """The last number of a text, exactly; None where it holds none.

    Args:
        text: Any text.
        percent: Whether `12%` is 12 ("ignored") or 0.12 ("hundredths").
    """
    values = (_value(match, percent) for match in _NUMBER.finditer(_LATEX_FRACTION.sub(_plain_fraction, text)))
    return next(reversed([value for value in values if value is not None]), None)


def ends_with_answer(response: str, answer: str) -> bool:
    """Whether a response ends with the answer as a word, or a number, of its own.

    Case does not count, nor do white space, quotes, brackets, asterisks and final marks around the answer.
    """
    said, expected = (text.strip(_AROUND_AN_ANSWER).casefold() for text in (response, answer))
    if not expected or not said.endswith(expected):
        return False
    before = said[: -len(expected)][-1:]
    is_cut_off_number = expected[0].isdecimal() and before in _INSIDE_A_NUMBER
    return not (before.isalnum() or before == "_" or is_cut_off_number)


def last_section(text: str, name: str) -> str | None:
    """What stands in the last closed `<name>...</name>`; None where there is none."""
    end = text.rfind(f"</{name}>")
    start = text.rfind(f"<{name}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(name) + 2 : end]


def has_exactly_sections(text: str, names: Sequence[str]) -> bool:
    """Whether a text is `<a>...</a> <b>...</b>` for the names in order: each once, not empty, and nothing outside."""
    tags = [tag for name in names for tag in (f"<{name}>", f"</{name}>")]
    pieces = re.split(f"({'|'.join(map(re.escape, tags))})", text)
    outside, inside = pieces[0::4], pieces[2::4]
    return pieces[1::2] == tags and not any(map(str.strip, outside)) and all(map(str.strip, inside))


def _plain_fraction(match: re.Match[str]) -> str:
    r"""`2\frac{1}{2}` is a mixed number, in which a space parts the whole from the fraction."""
    whole = f"{match['digit']} " if match["digit"] else ""
    return f"{whole}{match['n']}/{match['d']}"


def _value(match: re.Match[str], percent: Percent) -> Fraction | None:
    value = _size(match)
    if value is None:
        return None
    if match["percent"] and percent == "hundredths":
        value /= 100
    return -value if match["sign"] in _MINUSES else value


def _size(match: re.Match[str]) -> Fraction | None:
    if match["decimal"]:
        return Fraction(match["decimal"].replace(",", ""))
    numerator, denominator = int(match["numerator"]), int(match["denominator"])
    if not denominator:
        return None
    # A whole goes with a proper fraction only: in "3 5/4" the 3 is a number of its own.
    whole = int(match["whole"] or 0) if numerator < denominator else 0
    return whole + Fraction(numerator, denominator)
