"""From a row to a prompt: columns, templates, chat messages, and rows that give none."""

import pytest
from tokenmill.bulk.prompts import PromptError, TemplateError, make_renderer
from tokenmill.bulk.rows import Fields


def said(text: str) -> Fields:
    return {"messages": [{"role": "user", "content": text}]}


def test_a_prompt_column_is_sent_as_one_user_message() -> None:
    assert make_renderer()({"prompt": "hi"}) == said("hi")


def test_raw_sends_the_text_itself() -> None:
    assert make_renderer(is_raw=True)({"prompt": "hi"}) == {"prompt": "hi"}


def test_messages_win_over_prompt_and_pass_unchanged() -> None:
    messages: Fields = {"messages": [{"role": "system", "content": "Be brief."}], "prompt": "unused"}
    assert make_renderer()(messages) == {"messages": [{"role": "system", "content": "Be brief."}]}


def test_messages_in_a_csv_cell_are_json() -> None:
    assert make_renderer()({"messages": '[{"role": "user", "content": "hi"}]'}) == said("hi")


@pytest.mark.parametrize(("cell", "reason"), [("[oops", "not JSON"), ("{}", "must be a JSON array")])
def test_a_messages_cell_that_is_no_json_array_gives_no_prompt(cell: str, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        make_renderer()({"messages": cell})


def test_a_named_column_may_hold_text_a_number_or_messages() -> None:
    render = make_renderer(column="q")
    assert render({"q": "hi"}) == said("hi")
    assert render({"q": 12}) == said("12")
    assert render({"q": [{"role": "user", "content": "hi"}]}) == said("hi")


def test_a_missing_column_is_told_with_those_there_are() -> None:
    with pytest.raises(PromptError, match="no column 'q'; this row has 'a', 'b'"):
        make_renderer(column="q")({"a": 1, "b": 2})
    with pytest.raises(PromptError, match="name one with --column"):
        make_renderer()({"question": "a"})


def test_an_empty_column_is_told_apart_from_a_missing_one() -> None:
    with pytest.raises(PromptError, match="the column 'q' is empty in this row"):
        make_renderer(column="q")({"q": None})
    with pytest.raises(PromptError, match="'prompt' and 'messages' are empty"):
        make_renderer()({"prompt": None})


def test_messages_cannot_be_raw() -> None:
    with pytest.raises(PromptError, match="cannot be sent raw"):
        make_renderer(is_raw=True)({"messages": []})


def test_a_template_sees_every_column() -> None:
    render = make_renderer(template="{{ a }} + {{ b }} = ?{% if c %} {{ c }}{% endif %}")
    assert render({"a": 1, "b": "two", "c": ""}) == said("1 + two = ?")


def test_a_template_keeps_the_text_as_it_is() -> None:
    assert make_renderer(template="{{ q }}")({"q": "<b> & 'x' {{ y }}"}) == said("<b> & 'x' {{ y }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ q + 1 }}",
        "{{ l.append(2) }}",
        "{{ 'x' * 10**9 }}",
        "{{ 9 ** 9999999 }}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    ],
)
def test_a_template_that_fails_on_a_row_blames_the_row(template: str) -> None:
    with pytest.raises(PromptError, match="template: "):
        make_renderer(template=template)({"q": "a", "l": [1]})


def test_a_template_with_a_syntax_error_is_refused_before_any_row() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        make_renderer(template="ok\n{{ oops")


def test_a_system_message_comes_first_unless_the_row_has_its_own() -> None:
    render = make_renderer(system="Be brief.")
    brief: Fields = {"role": "system", "content": "Be brief."}
    assert render({"prompt": "hi"}) == {"messages": [brief, {"role": "user", "content": "hi"}]}
    own: Fields = {"messages": [{"role": "system", "content": "Be long."}]}
    assert render(own) == own
    with pytest.raises(TemplateError, match="cannot be sent raw"):
        make_renderer(system="Be brief.", is_raw=True)
