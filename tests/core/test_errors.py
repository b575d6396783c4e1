"""What messages say of names that nobody knows."""

from __future__ import annotations

import pytest

from nas.core.errors import suggest

LETTERS = "abcdefghijklmnopqrst"


@pytest.mark.parametrize(
    ("word", "legal", "said"),
    [
        ("fp3", ["int8", "fp32"], "unknown thing 'fp3', did you mean 'fp32'? Known: fp32, int8."),
        ("x", ["int8", "fp32"], "unknown thing 'x'. Known: fp32, int8."),
        ("x", [], "unknown thing 'x'."),
        ("aaa1", [letter * 4 for letter in LETTERS], "unknown thing 'aaa1', did you mean 'aaaa'?"),
        ("0", LETTERS, "unknown thing '0'. Known: a, b, c, d, e, f, g, h, i, j, k, l, ... (20 in all)."),
    ],
)
def test_an_unknown_name_gets_the_closest_all_where_they_are_few_or_some(word, legal, said):
    assert suggest("thing", word, legal) == said
