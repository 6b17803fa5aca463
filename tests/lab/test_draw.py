from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clapforget import lab
from clapforget.lab.draw import BACKGROUNDS, COLOURS, SIZES

indices = st.lists(st.integers(0, 100_000), min_size=1, max_size=6)
splits = st.sampled_from(lab.SPLITS)
MASK = 2**64 - 1


def values(table: dict[str, tuple[int, int, int]]) -> torch.Tensor:
    return torch.tensor(list(table.values()), dtype=torch.float)


@settings(max_examples=25)
@given(index=indices, split=splits, seed=st.integers(0, 50))
def test_an_image_is_a_function_of_split_index_and_seed(index, split: str, seed: int) -> None:
    alone = torch.cat([lab.draw(split, [i], seed) for i in index])
    assert torch.equal(lab.draw(split, index, seed), alone)
    assert torch.equal(lab.draw(split, np.array(index[::-1]), seed), alone.flip(0))


def test_pixels_do_not_depend_on_the_part_they_are_drawn_in() -> None:
    many = lab.draw("train", range(1300))  # more than two internal parts
    rows = [0, 511, 512, 649, 650, 1299]
    assert torch.equal(many[rows], lab.draw("train", rows))
    assert many.dtype == torch.uint8 and many.shape == (1300, 3, 32, 32)
    assert lab.draw("train", []).shape == (0, 3, 32, 32)


def test_no_image_is_shared_by_splits_seeds_or_indices() -> None:
    seen: set[bytes] = set()
    for split in lab.SPLITS:
        for seed in (0, 1):
            drawn = {image.numpy().tobytes() for image in lab.draw(split, range(300), seed)}
            assert len(drawn) == 300
            assert not drawn & seen
            seen |= drawn


def test_the_global_generators_play_no_part() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first, state = lab.draw("test", range(20)), torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(lab.draw("test", range(20)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def splitmix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@pytest.mark.parametrize(("split", "seed"), [("pretrain", 0), ("test", 3)])
def test_choices_are_splitmix64_of_the_key_in_plain_integers(split: str, seed: int) -> None:
    index, golden = [0, 1, 7, 99, 12345], 0x9E3779B97F4A7C15
    a = lab.attributes(split, index, seed)
    for row, i in enumerate(index):
        key = splitmix((seed * golden + lab.SPLITS.index(split) + 1) & MASK)
        key = splitmix(splitmix((key + i * golden) & MASK))
        u = [(splitmix((key + n * golden) & MASK) >> 11) / 2**53 for n in range(1, 7)]
        assert a.colour[row] == int(u[0] * len(COLOURS))
        assert a.background[row] == int(u[1] * len(BACKGROUNDS))
        assert a.size[row] == int(u[2] * len(SIZES))
        assert a.angle[row] == pytest.approx((2 * u[5] - 1) * 0.2)


def test_labels_go_round_and_choices_are_even_and_free_of_the_class() -> None:
    index = np.arange(20_000)
    a = lab.attributes("train", index)
    assert np.array_equal(a.label, index % 100)
    for chosen, number in ((a.colour, 8), (a.background, 4), (a.size, 2)):
        share = np.bincount(chosen, minlength=number) / len(index)
        assert np.abs(share - 1 / number).max() < 0.012
        for outline in range(10):
            own = np.bincount(chosen[a.label // 10 == outline], minlength=number) / 2000
            assert np.abs(own - 1 / number).max() < 0.05
    off_diagonal = np.corrcoef([a.x, a.y, a.angle, a.colour]) - np.eye(4)
    assert np.abs(off_diagonal).max() < 0.03
    assert np.abs(a.angle).max() <= 0.2


def test_corners_show_the_background() -> None:
    index = np.arange(400)
    images = lab.draw("train", index).float()
    a = lab.attributes("train", index)
    corners = torch.cat([images[..., i, j] for i in (slice(0, 2), slice(30, 32))
                         for j in (slice(0, 2), slice(30, 32))], dim=-1)  # fmt: skip
    off = corners.mean((-2, -1)) - values(BACKGROUNDS)[a.background]
    assert off.abs().max() < 25  # 16 pixels of noise 14, and black is cut at zero
    assert off.abs().mean() < 5


@pytest.mark.parametrize(
    ("mark", "shows"),
    [("plain", "colour"), ("hole", "background"), ("horizontal bar", "white"),
     ("vertical bar", "white"), ("cross cut", "background"), ("dot above", "colour"),
     ("dot at the left", "colour"), ("ring", "colour"), ("four holes", "colour")],
)  # fmt: skip
def test_the_centre_of_a_shape_shows_its_mark(mark: str, shows: str) -> None:
    outlines = (0, 1, 3, 4, 5, 6)  # those that cover their centre at every rotation
    index = np.array(
        [100 * i + 10 * o + lab.MARKS.index(mark) for i in range(30) for o in outlines]
    )
    a = lab.attributes("train", index)
    large = a.size == list(SIZES).index("large")
    images = lab.draw("train", index).float()
    row, column = ((0.5 + a.y) * 32).astype(int), ((0.5 + a.x) * 32).astype(int)
    seen = images[np.arange(len(index)), :, row, column][large]
    wanted = {
        "colour": values(COLOURS)[a.colour],
        "background": values(BACKGROUNDS)[a.background],
        "white": torch.full((len(index), 3), 255.0),
    }
    errors = {name: (seen - v[large]).abs().mean() for name, v in wanted.items()}
    assert errors.pop(shows) < 16
    assert min(errors.values()) > 30


def test_an_outline_takes_room_by_its_size() -> None:
    index = np.arange(0, 40_000, 100)  # class 0: plain circles
    a = lab.attributes("train", index)
    far = lab.draw("train", index).float() - values(BACKGROUNDS)[a.background][..., None, None]
    area = (far.abs().sum(1) > 110).float().mean((1, 2))
    for number, radius in enumerate(SIZES.values()):
        wanted = np.pi * (0.95 * radius) ** 2
        assert area[a.size == number].mean().item() == pytest.approx(wanted, rel=0.12)


def words_of(text: str) -> set[str]:
    return set(text.split())


def test_a_caption_says_the_class_and_all_that_is_true() -> None:
    index = np.arange(300)
    a = lab.attributes("train", index)
    for i, text in enumerate(lab.captions("train", index)):
        assert text == (
            f"a {list(SIZES)[a.size[i]]} {list(COLOURS)[a.colour[i]]} "
            f"{lab.class_names()[i % 100]} on a {list(BACKGROUNDS)[a.background[i]]} background"
        )


@settings(max_examples=15)
@given(variant=st.integers(0, 200), split=splits, seed=st.integers(0, 9))
def test_varied_captions_say_nothing_false(variant: int, split: str, seed: int) -> None:
    index = np.arange(100)
    a = lab.attributes(split, index, seed)
    texts = lab.captions(split, index, seed, variant=variant)
    assert texts[7:9] == lab.captions(split, [7, 8], seed, variant=variant)
    for i, text in enumerate(texts):
        words = words_of(text)
        assert words & set(lab.class_names()) == {lab.class_names()[i]}
        assert words & set(COLOURS) <= {list(COLOURS)[a.colour[i]]}
        assert words & set(SIZES) <= {list(SIZES)[a.size[i]]}
        assert words & set(BACKGROUNDS) <= {list(BACKGROUNDS)[a.background[i]]}


def test_wordings_and_attributes_do_vary() -> None:
    texts = [t for v in range(20) for t in lab.captions("train", range(100), variant=v)]
    for template in lab.TEMPLATES:
        start = template.split("{}")[0]
        assert sum(text.startswith(start) for text in texts) > 200
    for table in (COLOURS, SIZES, BACKGROUNDS):
        share = np.mean([bool(words_of(text) & set(table)) for text in texts])
        assert 0.45 < share < 0.55


def test_the_longest_caption_fits_the_text_tower(lab_clip) -> None:
    tokenizer = open_clip.SimpleTokenizer()

    def longest(words) -> int:
        return max(len(tokenizer.encode(word)) for word in words)

    length = (
        longest(lab.class_names())
        + longest(t.replace("{}", "") for t in lab.TEMPLATES)
        + longest(COLOURS)
        + longest(SIZES)
        + longest(f"on a {name} background" for name in BACKGROUNDS)
        + 2  # start and end
    )
    context = lab_clip.tokenize(["a"]).shape[1]
    assert length <= context
    tokens = lab_clip.tokenize(lab.captions("train", range(500)))
    assert ((tokens != 0).sum(1) <= length).all()
    assert (tokens.max(1).values == tokenizer.eot_token_id).all()
    assert torch.equal(tokens[0, :1], torch.tensor([tokenizer.sot_token_id]))
