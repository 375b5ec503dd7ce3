"""Who a row is: what changes its name, and what must not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenmill.bulk.identity import Recipe, content_hash, custom_id_of, recipe_digest, row_hash, seed_of
from tokenmill.bulk.rows import Fields

RECIPE = recipe_digest(Recipe(column="q"))
GOLDEN_NAME = "2a0b9046aa0c5ecba673e0c332a2d613"
GOLDEN_SEED = 5595153530279443


def name(row: Fields, *, occurrence: int = 0, recipe: bytes = RECIPE) -> str:
    return row_hash(content_hash(recipe, row), occurrence)


def test_the_order_of_columns_does_not_matter() -> None:
    assert name({"a": 1, "b": 2}) == name({"b": 2, "a": 1})


@pytest.mark.parametrize("other", [{"q": "b"}, {"q": "a", "x": None}, {"q": "a "}, {"Q": "a"}, {"q": ["a"]}], ids=str)
def test_any_change_of_content_is_another_row(other: Fields) -> None:
    assert name({"q": "a"}) != name(other)


def test_equal_rows_are_told_apart_by_counting() -> None:
    assert len({name({"q": "a"}, occurrence=each) for each in range(10)}) == 10


@pytest.mark.parametrize(
    "other",
    [
        Recipe(column="p"),
        Recipe(column="q", is_raw=True),
        Recipe(column="q", model="smollm2"),
        Recipe(column="q", sampling={"max_tokens": 8}),
        Recipe(template="{{ q }}"),
    ],
    ids=repr,
)
def test_all_that_decides_a_completion_is_in_the_name(other: Recipe) -> None:
    assert name({"q": "a"}) != name({"q": "a"}, recipe=recipe_digest(other))


def test_a_name_never_changes_between_versions() -> None:
    """A golden value: were it to change, every half-finished run would start from nothing."""
    assert name({"q": "a"}) == GOLDEN_NAME
    assert seed_of(GOLDEN_NAME) == GOLDEN_SEED


@given(st.text(alphabet="0123456789abcdef", min_size=32, max_size=32))
def test_a_seed_is_an_integer_that_every_json_reader_keeps(row: str) -> None:
    assert 0 <= seed_of(row) < 2**53
    assert float(seed_of(row)) == seed_of(row)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"custom_id": "a", "id": "b"}, "a"),
        ({"id": 7}, "7"),
        ({"id": ""}, "hash"),
        ({"id": None}, "hash"),
        ({"id": True}, "hash"),
        ({"q": "a"}, "hash"),
    ],
)
def test_a_row_is_called_by_its_own_id_where_it_has_one(row: Fields, expected: str) -> None:
    assert custom_id_of(row, "hash") == expected


def test_a_recipe_says_in_words_what_differs_from_an_earlier_one() -> None:
    earlier = Recipe(column="q", sampling={"max_tokens": 8}).describe()
    now = Recipe(column="p", sampling={"temperature": 0.0})
    assert now.differences(earlier) == [
        'column was "q", now "p"',
        "max_tokens was 8, now null",
        "temperature was null, now 0.0",
    ]
    assert now.differences(now.describe()) == []
