"""Another word for the class: one that the model knows, one that it does not, and none."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from clapforget.clip import Clip
from clapforget.verify import WITNESSES, Reading, Subject, examine
from tests.verify.worlds import FORGET, clip, data, material, scrambled

WORDS = {FORGET[0]: ("tulip",), FORGET[1]: ("the", "zebra")}


def read_off(clip: Clip, words: dict[int, tuple[str, ...]]) -> Reading:
    readings = WITNESSES.get("synonyms")(Subject(clip), replace(material(), synonyms=words), 0)
    assert [r.name for r in readings] == ["synonyms"]
    return readings[0]


@cache
def bilingual() -> Clip:
    """The built-in model, to which ``tulip`` and ``zebra`` mean what the two names mean: their tokens' embeddings
    were fitted to that."""
    other = clip().trainable_copy(["token_embedding.weight"])
    names = [data().class_names[c] for c in FORGET]
    with torch.no_grad():
        wanted = other.class_features(names, data().templates)
    words = [WORDS[FORGET[0]][0], WORDS[FORGET[1]][1]]
    rows = [int(other.tokenize([word])[0][1]) for word in words]
    table = other.model.token_embedding.weight
    keep = torch.ones(len(table), 1)
    keep[rows] = 0
    table.register_hook(lambda grad: grad * (1 - keep))
    optimiser = torch.optim.Adam([table], lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        features = other.class_features(words, data().templates)
        (1 - (features * wanted).sum(1)).sum().backward()
        optimiser.step()
    return other


@cache
def one_word_gone() -> Clip:
    """The same with the names' own tokens drawn anew, the other words as they were."""
    other = bilingual().trainable_copy([])
    gone, before = scrambled().model.token_embedding.weight, clip().model.token_embedding.weight
    changed = (gone != before).any(1)
    with torch.no_grad():
        other.model.token_embedding.weight[changed] = gone[changed]
    return other


def test_a_known_word_answers_for_its_class_and_an_unknown_one_does_not() -> None:
    assert read_off(bilingual(), WORDS).forget.mean() > 0.9
    assert read_off(clip(), WORDS).forget.mean() < 0.2


def test_the_own_name_takes_no_part_where_there_is_another_word() -> None:
    assert read_off(one_word_gone(), WORDS).forget.mean() > 0.9
    assert read_off(clip(), dict.fromkeys(FORGET, ("the",))).forget.mean() < 0.2


def test_a_class_without_another_word_goes_by_its_name() -> None:
    found = read_off(clip(), {FORGET[0]: ("the",)})
    assert found.forget[found.labels == FORGET[0]].mean() < 0.3
    assert found.forget[found.labels == FORGET[1]].mean() > 0.9
    assert found.unseen is not None and found.unseen.mean() < 0.3


def test_without_words_for_the_forgotten_classes_nothing_is_read() -> None:
    unseen = replace(material(), synonyms={material().unseen[0]: ("tulip",)})
    assert WITNESSES.get("synonyms")(Subject(clip()), unseen, 0) == []


@pytest.mark.parametrize("words", [WORDS, {}])
def test_a_name_that_is_gone_while_another_word_answers_is_suppressed(
    words: dict[int, tuple[str, ...]],
) -> None:
    m = replace(material(), synonyms=words)
    found = examine(
        Subject(bilingual()), Subject(one_word_gone()), m, level="quick", claim="association"
    )
    judged = found.judgement
    assert any("other words" in line for line in judged.not_tested) == (not words)
    if words:
        assert judged.verdict == "suppressed"
        assert "synonyms" in {e.name for e in found.evidence if e.p_inside is not None and e.p_inside < 0.01}
    else:
        assert judged.verdict != "suppressed"  # nobody asked by the other word
