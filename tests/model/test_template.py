import pytest

from c2v_engine.errors import ConfigError
from c2v_engine.model.template import Template, parse_format


def test_literals_prompt_and_text_are_rendered_in_their_order():
    rendered, spans = parse_format("Q: {prompt} | {text}.").render("find", "cats")
    assert rendered == "Q: find | cats."
    assert [rendered[start:end] for start, end in spans] == ["cats"]


def test_every_copy_of_the_text_has_its_span():
    rendered, spans = parse_format("{text} again: {text}").render("unused", "cats")
    assert rendered == "cats again: cats"
    assert spans == [(0, 4), (12, 16)]


def test_an_empty_text_has_an_empty_span():
    assert parse_format("{prompt}{text}").render("p", "") == ("p", [(1, 1)])


def test_braces_in_prompt_and_text_are_left_alone():
    rendered, _ = parse_format("{prompt}{text}").render("{text}", "{0} {{x}} %s")
    assert rendered == "{text}{0} {{x}} %s"


def test_doubled_braces_in_the_format_are_literal_braces():
    assert parse_format("{{{text}}}").render("", "a") == ("{a}", [(1, 2)])


def test_fields_name_what_the_format_reads():
    assert parse_format("{prompt}{text}").fields == {"prompt", "text"}
    assert parse_format("passage: ").fields == frozenset()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{prompt}{text}", True),
        ("{text}", True),
        ("{text}\n", False),
        ("{text}{prompt}", False),
        ("{text}{text}", False),
        ("{prompt}", False),
        ("", False),
    ],
)
def test_ends_with_text_only_where_one_text_stands_last(source, expected):
    assert parse_format(source).ends_with_text is expected


@pytest.mark.parametrize(
    "source", ["{query}", "{}", "{0}", "{text!r}", "{text:>9}", "{text.upper}", "{text", "text}"]
)
def test_any_other_field_is_refused_with_the_format_in_the_message(source):
    with pytest.raises(ConfigError, match=r"encoder\.text is "):
        parse_format(source, "encoder.text")


def test_entries_are_single_rows_or_formats():
    template = Template(("<bos>", "{prompt}", "<context>", "{text}", "<eos>"), ("<context>", -1))
    kinds = [entry.kind for entry in template.entries]
    assert kinds == ["<bos>", "text", "<context>", "text", "<eos>"]
    assert template.single_rows == 3
    assert [entry.source for entry in template.formats] == ["{prompt}", "{text}"]
    assert template.pooled == (2, 4)
    assert template.has_context
    assert template.has_text


def test_a_single_row_is_one_only_when_it_stands_alone():
    template = Template(("<bos>{text}", "<eos>"), ("<eos>",))
    assert [entry.kind for entry in template.entries] == ["text", "<eos>"]
    assert template.single_rows == 1
    assert not template.has_context


def test_text_entries_are_pooled_by_name_or_index():
    template = ("{text}", "{text}", "<eos>")
    assert Template(template, (1,)).pooled == (1,)
    assert Template(("<bos>", "{text}"), ("{text}",)).pooled == (1,)


def test_all_rows_are_pooled_as_the_entry_after_the_last():
    template = Template(("<bos>", "{text}", "<eos>"), ("<all>", "<eos>"))
    assert template.pooled == (3, 2)
    assert not template.pools_single_rows
    assert Template(("<bos>", "{text}", "<eos>"), ("<bos>", "<eos>")).pools_single_rows


@pytest.mark.parametrize(
    ("template", "pooling", "message"),
    [
        ((), ("<eos>",), "template is empty"),
        (("{text}", ""), (0,), "template holds ''"),
        (("{text}", 3), (0,), "template holds 3"),
        (("{text}",), (), "pooling is empty"),
        (("{text}",), ("<eos>",), "pooling holds '<eos>', which is no entry"),
        (("{text}", "{text}"), ("{text}",), "stands twice in template: use its index"),
        (("{text}",), (1,), "pooling holds index 1, template has 1 entries"),
        (("{text}",), (-2,), "pooling holds index -2"),
        (("{text}",), (True,), "pooling holds True"),
        (("{text}",), (None,), "pooling holds None"),
        (("{text}", "<all>"), (0,), "template holds '<all>', which can only stand in pooling"),
    ],
)
def test_an_impossible_template_or_pooling_is_refused(template, pooling, message):
    with pytest.raises(ConfigError, match=message):
        Template(template, pooling)
