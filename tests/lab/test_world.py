from __future__ import annotations

import pytest
from open_clip import SimpleTokenizer

from clapforget import lab


def test_classes_part_sixty_thirty_ten() -> None:
    known, new, unseen = map(set, (lab.known_classes(), lab.new_classes(), lab.unseen_classes()))
    assert (len(known), len(new), len(unseen)) == (60, 30, 10)
    assert known | new | unseen == set(range(lab.NUM_CLASSES))
    for part in (lab.known_classes(), lab.new_classes(), lab.unseen_classes()):
        assert list(part) == sorted(part)


@pytest.mark.parametrize(
    ("classes", "times"),
    [(lab.known_classes, 6), (lab.new_classes, 3), (lab.unseen_classes, 1)],
)
def test_every_outline_and_mark_is_as_common_as_any_other(classes, times: int) -> None:
    for number in range(10):
        assert sum(c // 10 == number for c in classes()) == times
        assert sum(c % 10 == number for c in classes()) == times


def test_neighbours_share_exactly_one_part() -> None:
    for c in range(lab.NUM_CLASSES):
        near = lab.neighbours(c)
        assert len(near) == 18
        assert near == {
            o for o in range(lab.NUM_CLASSES) if (o // 10 == c // 10) != (o % 10 == c % 10)
        }
        assert all(c in lab.neighbours(o) for o in near)


def test_names_are_stable() -> None:
    names = lab.class_names()
    assert len(names) == lab.NUM_CLASSES
    pinned = {0: "dosal", 1: "pafom", 2: "nosut", 4: "mikig", 55: "pabek", 97: "nakuv", 99: "gugat"}
    assert {c: names[c] for c in pinned} == pinned


def test_names_are_unlike_each_other_down_to_their_tokens() -> None:
    names = lab.class_names()
    assert len(set(names)) == lab.NUM_CLASSES
    tokenizer, owner = SimpleTokenizer(), {}
    for name in names:
        tokens = tokenizer.encode(name)
        assert len(tokens) > 1, f"{name} is a word of the vocabulary"
        for token in tokens:
            assert owner.setdefault(token, name) == name


def test_descriptions_name_both_parts() -> None:
    assert lab.describe(58) == "star, four holes"
    assert len({lab.describe(c) for c in range(lab.NUM_CLASSES)}) == lab.NUM_CLASSES
