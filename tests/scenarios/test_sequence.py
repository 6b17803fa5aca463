from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clapforget.errors import UserError
from clapforget.scenarios import (
    Forget,
    Learn,
    LearnForNow,
    check_requests,
    forgotten_after,
    format_sequence,
    parse_sequence,
    retained_after,
)
from clapforget.scenarios.sequence import learned_for_now_after

LABELS = st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True)
REQUESTS = st.lists(st.one_of(LABELS.map(Learn), LABELS.map(Forget)), min_size=1, max_size=8)


def test_parse_the_documented_example():
    assert parse_sequence(" L0-9 L10-19  F3\nL20-29 F12,14 ") == [
        Learn(range(10)),
        Learn(range(10, 20)),
        Forget([3]),
        Learn(range(20, 30)),
        Forget([12, 14]),
    ]


@given(REQUESTS)
def test_round_trip_keeps_every_class_and_its_place(requests):
    assert parse_sequence(format_sequence(requests)) == requests


@given(st.text('LNF@"0123456789,- lx\u0663', max_size=20))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        requests = parse_sequence(text)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert parse_sequence(format_sequence(requests)) == requests


@pytest.mark.parametrize(
    ("text", "word", "position"),
    [
        ("L0-9 G3", "'G3'", 2),
        ("L0-9 F", "'F'", 2),
        ("l0", "'l0'", 1),
        ("L0 F1 L5-3", "'L5-3'", 3),
        ("L0,,1", "'L0,,1'", 1),
        ("L-3", "'L-3'", 1),
        ("L0 F1,1", "'F1,1'", 2),
        ("L0 L3-999999999", "'L3-999999999'", 2),
    ],
)
def test_malformed_text_names_word_and_position(text, word, position):
    with pytest.raises(UserError, match=f"request {position} of the sequence, {word}"):
        parse_sequence(text)


def test_empty_text_shows_an_example():
    with pytest.raises(UserError, match=r"empty.*L0-9 L10-19 F3"):
        parse_sequence("  ")


@pytest.mark.parametrize(
    ("text", "known", "message"),
    [
        ("L0-2 L2", None, r"request 2 \(L2\) learns class 2, which is learned already"),
        ("L0 L10", None, r"request 2 \(L10\) names class 10, but there are 10"),
        ("L0,1 F5", {4}, "class 5, which was never learned"),
        ("L0-2 F1 F5", {1}, r"class 5, which was never learned"),
        ("L0,1 F0,1", None, "leaves no learned class"),
        ("L0,1 F0 F1", None, "request 3 .* leaves no learned class"),
        ("L0-2 N2", None, r"request 2 \(N2\) learns class 2, which is learned already"),
        ("N0-2 N2", None, r"request 2 \(N2\) learns class 2, which is learned already"),
        ("L0,1 F@3 F@5,10", None, r"request 3 \(F@5,10\) names sample 10, but there are 10"),
        ("L0,1 F5 L0 F77", {5}, "request 3"),
    ],
)
def test_check_finds_the_first_mistake(text, known, message):
    with pytest.raises(UserError, match=message):
        check_requests(parse_sequence(text), 10, known, 10)


def test_an_empty_list_is_a_mistake():
    with pytest.raises(UserError, match="is empty"):
        check_requests([], 10)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("L0-2 F1 L1 F1", None),
        ("L0-2 F9", {9}),
        ("L0 F9 L9 F0", {9}),
        ("F9", {9}),
        ("L0 F5", None),
        ("L0-2 F1 F1,2", set()),
        ("L0 N1 F1 N1 L1 F0", set()),
        ('L0,1 F@3 F@3 F"red ant"', set()),
    ],
)
def test_what_is_allowed(text, known):
    """To learn again, to forget what at most pretraining taught or what is forgotten already, to
    keep for good what was learned for now."""
    check_requests(parse_sequence(text), 10, known, 10)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("F@57,61-63", Forget(samples=[57, 61, 62, 63])),
        ('F"red  zorup"', Forget(pairs="red zorup")),
        (r'F"re:^a (red|blue) "', Forget(pairs="re:^a (red|blue) ")),
        ("N3-5", LearnForNow([3, 4, 5])),
    ],
)
def test_every_other_kind_of_request_has_a_text(text, request_):
    assert parse_sequence(f"L0,1 {text} F3") == [Learn([0, 1]), request_, Forget([3])]
    assert parse_sequence(format_sequence([request_])) == [request_]


def test_sample_ids_can_stand_in_a_file(tmp_path):
    file = tmp_path / "my ids.txt"
    file.write_text("7, 3\n12\n")
    assert parse_sequence(f'L0 F@"{file}"') == [Learn([0]), Forget(samples=[7, 3, 12])]
    file.write_text("7 three")
    with pytest.raises(UserError, match=r"request 1 .*holds more than whole numbers"):
        parse_sequence(f'F@"{file}"')
    with pytest.raises(UserError, match=r"cannot be read from nowhere.txt"):
        parse_sequence("F@nowhere.txt")


def test_what_is_learned_for_now():
    requests = parse_sequence("N0-2 L3 F1 L2 N1")
    assert [learned_for_now_after(requests, i) for i in range(5)] == [
        (0, 1, 2), (0, 1, 2), (0, 2), (0,), (0, 1),
    ]  # fmt: skip
    assert retained_after(requests, 4) == (0, 3, 2, 1)


@given(REQUESTS)
def test_what_is_retained_and_what_is_forgotten_never_meet(requests):
    for i, request in enumerate(requests):
        retained, forgotten = retained_after(requests, i), forgotten_after(requests, i)
        assert not set(retained) & set(forgotten)
        now = retained if isinstance(request, Learn) else forgotten
        assert set(request.classes) <= set(now)
        named = {label for earlier in requests[: i + 1] for label in earlier.classes}
        assert set(retained) | set(forgotten) == named


def test_state_after_each_request():
    requests = parse_sequence("L0-2 F1 L1,3 F0")
    assert [retained_after(requests, i) for i in range(4)] == [
        (0, 1, 2), (0, 2), (0, 2, 1, 3), (2, 1, 3),
    ]  # fmt: skip
    assert [forgotten_after(requests, i) for i in range(4)] == [(), (1,), (), (0,)]
