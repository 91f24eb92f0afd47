"""What counts as an answer: numbers as people write them, words at the end of a response, tagged sections."""

from fractions import Fraction

import pytest

from reward.answers import ends_with_answer, has_exactly_sections, last_number, last_section

WRITTEN = {
    "a plain number": ("the answer is 42", 42),
    "the last of several": ("from 3 apples and 4 pears: 7", 7),
    "a full stop behind it": ("It is 42.", 42),
    "a decimal point": ("about 3.25 m", "3.25"),
    "a decimal without a leading zero": ("p = .5", "0.5"),
    "an ellipsis is no decimal point": ("well...42", 42),
    "thousands separators": ("costs 1,234,567.5 in all", "1234567.5"),
    "a list without spaces": ("1,2,3", 3),
    "a negative number": ("x = -5", -5),
    "a typographic minus": ("x = \N{MINUS SIGN}5", -5),
    "a difference has no negative number": ("5-3", 3),
    "nor has one behind a bracket": ("(5)-3", 3),
    "a range": ("10-20 minutes", 20),
    "a currency sign": ("-$1,200", -1200),
    "a unit": ("5kg", 5),
    "an exponent": ("2.5e-3 or so", "0.0025"),
    "a fraction": ("so 3/4", "3/4"),
    "a negative fraction with spaces": ("so -3 / 4", "-3/4"),
    "a mixed number": ("3 1/2 cups", "7/2"),
    "a negative mixed number": ("-3 1/2", "-7/2"),
    "a number before an improper fraction": ("in 3 5/4 time", "5/4"),
    "a LaTeX fraction": (r"$\boxed{-\frac{3}{4}}$", "-3/4"),
    "a LaTeX mixed number": (r"\boxed{2\dfrac{1}{2}}", "5/2"),
    "a box": (r"\boxed{17}", 17),
    "a date is three numbers": ("on 3/4/2024", 2024),
    "nothing is divided by zero": ("7 of 3/0", 7),
    "a version is none": ("5 of v1.2.3", 5),
    "a word with digits is none": ("5 of x86", 5),
}


@pytest.mark.parametrize(("text", "value"), WRITTEN.values(), ids=WRITTEN)
def test_the_last_number_of_a_text_is_read_exactly(text, value):
    assert last_number(text, percent="ignored") == Fraction(value)


@pytest.mark.parametrize("text", ["", "none at all", "forty-two", "x86 and v1.2.3", "3/0", "9" * 5000, "0." + "3" * 50])
def test_a_text_without_a_readable_number_has_none(text):
    assert last_number(text, percent="ignored") is None


def test_a_huge_exponent_is_not_computed():
    assert last_number("7, not 1e99999999", percent="ignored") == 7
    assert last_number("1e300", percent="ignored") == Fraction(10) ** 300


@pytest.mark.parametrize("text", ["12.5%", r"12.5\%", "12.5 %"])
def test_a_percent_sign_is_ignored_or_divides(text):
    assert last_number(text, percent="ignored") == Fraction("12.5")
    assert last_number(text, percent="hundredths") == Fraction(1, 8)


@pytest.mark.parametrize(
    ("response", "answer", "is_right"),
    [
        (" It is Paris.\n", "paris", True),
        ("Paris, I think", "paris", False),
        ("so 0", "0", True),
        ("so 10", "0", False),
        ("it is -5", "5", False),
        ("it is 1.5", "5", False),
        ("x=5", "5", True),
        ("**New York**", "new york", True),
        ('He said "yes!"', "Yes", True),
        ("comparis", "paris", False),
        ("paris", "in paris", False),
        ("(b)", "B", True),
        ("f(x)", "f(x)", True),
    ],
)
def test_an_answer_ends_the_response_as_a_word_of_its_own(response, answer, is_right):
    assert ends_with_answer(response, answer) is is_right


def test_the_last_section_counts():
    text = "<answer>1</answer> no: <answer> 2\n</answer> <answer>3"

    assert last_section(text, "answer") == " 2\n"
    assert last_section(text, "think") is None
    assert last_section("</answer><answer>", "answer") is None


@pytest.mark.parametrize(
    ("response", "is_kept"),
    [
        ("<think>a\nb</think>\n<answer>c</answer>\n", True),
        ("<think>a < b</think><answer>c</answer>", True),
        ("so <think>a</think><answer>c</answer>", False),
        ("<think>a</think><answer>c</answer> done", False),
        ("<think>a</think> and <answer>c</answer>", False),
        ("<answer>c</answer><think>a</think>", False),
        ("<think>a</think>", False),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a<think></think><answer>c</answer>", False),
        ("<think>a</think><answer>c</answer><answer>d</answer>", False),
        ("<think>a<answer>c</think></answer>", False),
        ("<Think>a</Think><answer>c</answer>", False),
        ("", False),
    ],
)
def test_a_format_is_its_sections_once_each_in_order(response, is_kept):
    assert has_exactly_sections(response, ("think", "answer")) is is_kept
