"""Parameters that a row brings along: where they stand, what an empty cell means, what is refused."""

import math

import pytest
from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.parameters import ParameterError, parse_parameters, row_parameters
from tokenmill.bulk.prompts import PromptError, renderer_of
from tokenmill.bulk.rows import JSON, Fields
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.messages import Request


def test_columns_are_named_like_the_parameter_or_said() -> None:
    assert parse_parameters(["max_tokens", " temperature = heat", "settings"]) == {
        "max_tokens": "max_tokens",
        "temperature": "heat",
        "*": "settings",
    }


@pytest.mark.parametrize("items", [["heat=temperature"], ["one", "two"], ["seed", "seed=s"], ["seed="]])
def test_what_says_nothing_clear_is_refused(items: list[str]) -> None:
    with pytest.raises(ParameterError):
        parse_parameters(items)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_tokens", 8, 8),
        ("max_tokens", "8", 8),
        ("max_tokens", 8.0, 8),
        ("temperature", "0.5", 0.5),
        ("stop", "END", "END"),
        ("stop", "7", "7"),
        ("stop", '["a", "b"]', ["a", "b"]),
        ("ignore_eos", "true", True),
        ("temperature", "hot", "hot"),
    ],
)
def test_a_cell_is_read_as_the_parameter_means_it(name: str, value: JSON, expected: JSON) -> None:
    assert row_parameters({name: "c"}, {"c": value}) == {name: expected}


@pytest.mark.parametrize("fields", [{}, {"c": None}, {"c": ""}])
def test_where_a_row_says_nothing_the_run_decides(fields: Fields) -> None:
    assert row_parameters({"seed": "c"}, fields) == {}
    assert row_parameters({"*": "c"}, fields) == {}


def test_an_object_holds_several_and_a_column_of_its_own_wins() -> None:
    columns = {"*": "params", "seed": "seed"}
    assert row_parameters(columns, {"params": {"seed": 1, "top_p": 0.5}, "seed": 2}) == {"seed": 2, "top_p": 0.5}
    assert row_parameters({"*": "params"}, {"params": '{"seed": 1}'}) == {"seed": 1}
    for wrong in ("[1]", "text", 7):
        with pytest.raises(PromptError, match="must hold an object"):
            row_parameters({"*": "params"}, {"params": wrong})
    with pytest.raises(PromptError, match="'heat' is no parameter"):
        row_parameters({"*": "params"}, {"params": {"heat": 1}})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "hot", -1])
def test_a_value_that_is_no_number_is_refused_with_its_name(value: JSON) -> None:
    render = renderer_of(Recipe(parameters={"temperature": "t"}))
    with pytest.raises(InvalidRequestError, match="temperature"):
        Request.build(**render({"prompt": "hi", "t": value}))


def test_nan_is_a_number_that_is_refused() -> None:
    value = row_parameters({"temperature": "t"}, {"t": "NaN"})["temperature"]
    assert isinstance(value, float)
    assert math.isnan(value)
