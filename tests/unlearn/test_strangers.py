from __future__ import annotations

import torch

from clapforget import lab
from clapforget.seeding import generator_for
from clapforget.unlearn.strangers import (
    choose_stand_ins,
    own_tokens,
    strange_words,
    text_tokens,
)


def test_own_tokens_are_those_that_no_kept_text_has(lab_clip) -> None:
    pine, tree = text_tokens(lab_clip, ["pine"]), text_tokens(lab_clip, ["tree"])
    assert len(pine) == len(tree) == 1
    kept = ["a photo of a palm tree", "a willow tree"]
    assert torch.equal(own_tokens(lab_clip, ["pine tree"], kept), pine)
    assert len(own_tokens(lab_clip, ["palm tree"], kept)) == 0
    both = own_tokens(lab_clip, ["pine tree"], [])
    assert torch.equal(both, torch.cat([pine, tree]).unique())
    often = own_tokens(lab_clip, ["pine", "pine forest", "a pine"], ["a"], 0.5)
    assert torch.equal(often, pine)


def test_begin_end_and_padding_are_no_tokens_of_a_text(lab_clip) -> None:
    assert len(text_tokens(lab_clip, [""])) == len(text_tokens(lab_clip, [])) == 0
    assert torch.equal(text_tokens(lab_clip, ["a a", "a"]), text_tokens(lab_clip, ["a"]))


def test_strange_words_share_no_token_with_what_is_known(lab_clip) -> None:
    known = [t.format(name) for name in lab.class_names() for t in lab.TEMPLATES]
    words = strange_words(lab_clip, known, 40, generator_for(0))
    assert len(set(words)) == 40 and all(word.isalpha() and len(word) == 5 for word in words)
    met = text_tokens(lab_clip, known)
    assert not torch.isin(text_tokens(lab_clip, words), met).any()
    assert words == strange_words(lab_clip, known, 40, generator_for(0))
    assert words != strange_words(lab_clip, known, 40, generator_for(1))


def test_the_typical_stranger_stands_in_and_none_twice() -> None:
    cosines = torch.tensor([[0.0, 0.3, 0.9, 0.4], [0.0, 0.3, 0.9, 0.42]])
    none = torch.zeros(2, 4)
    assert choose_stand_ins(cosines, none) == [3, 1]  # means 0.4 and 0.405; 3 is taken
    wins = none.clone()
    wins[0, 3] = 1.0
    assert choose_stand_ins(cosines, wins) == [1, 3]
    assert choose_stand_ins(torch.zeros(3, 2), torch.zeros(3, 2)) == [0, 1, 0]


def test_the_table_is_found_in_both_layouts(make_transformer) -> None:
    from open_clip.model import CustomTextCLIP

    for clip in (make_transformer(), make_transformer(CustomTextCLIP)):
        table = clip.token_table.weight
        assert table is not None and table.shape == (49408, 32)
