"""The truth bench: that its cases are what they are said to be, and that its numbers are counted right."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from clapforget.bench import verify as bench
from clapforget.bench.verify_attack_edits import pass_name_on, permuted, turned
from clapforget.bench.verify_cifar import CifarWorld, kinds
from clapforget.bench.verify_edits import exchange_names, scramble_names, token_rows
from clapforget.bench.verify_kinds import KINDS, Kind, bare, cases, made
from clapforget.bench.verify_world import EXCLUDED, REQUESTS, World
from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.lab import known_classes
from clapforget.loading import load_clip
from clapforget.scenarios import ImageData
from clapforget.scenarios.cifar100_data import class_folders
from clapforget.scenarios.cifar100_data import known_classes as cifar_known
from clapforget.scenarios.data import TensorImages
from clapforget.verify.kept import right
from clapforget.verify.material import Material
from clapforget.verify.subject import Subject


@cache
def world() -> World:
    return World.of(0)


@cache
def material() -> Material:
    return world().material(world().forget, 0)


def accuracy(clip: Clip, part: str) -> float:
    return float(right(Subject(clip), material().test[part].first(5), material()).float().mean())


def test_there_are_kinds_enough_of_every_truth() -> None:
    assert len(KINDS) >= 14
    assert len({k.name for k in KINDS}) == len(KINDS)
    counts = {
        t: sum(k.truth == t for k in KINDS)
        for t in ("forgotten", "retained", "suppressed", "damaged")
    }
    assert min(counts.values()) >= 2


def test_kinds_are_chosen_by_words_in_their_names() -> None:
    chosen = bench._named(["twin", "nothing"], KINDS)
    assert [k.name for k in chosen] == [k.name for k in KINDS if "twin" in k.name or k.name == "nothing done"]
    assert list(bench._named([], KINDS)) == KINDS
    with pytest.raises(UserError, match=r"'nothin dome'.*nearest of .*nothing done"):
        bench._named(["twin", "nothin dome"], KINDS)


def test_where_the_first_kind_cannot_be_made_nothing_was_timed() -> None:
    outcome = bench._Outcome("k", "retained", 5, "retained", "retained", "4", "", {}, {}, 1.0)
    assert bench._summary([outcome], [], [], "quick")["quick_seconds"] is None


def test_requests_ask_for_what_their_twin_never_saw() -> None:
    for twin, forget in REQUESTS:
        assert set(forget) <= set(EXCLUDED[twin]) <= set(known_classes())


@pytest.mark.parametrize("seed", range(len(REQUESTS)))
def test_nothing_is_both_kept_and_excluded(seed: int) -> None:
    here = World(seed, world().data, world().base)
    assert not set(here.retain) & set(EXCLUDED[REQUESTS[seed][0]])
    assert not set(here.new) & set(known_classes())


def test_who_makes_a_case_shows_no_image_that_the_verifier_sees() -> None:
    pixels = {
        i.numpy().tobytes()
        for p in (*material().test.values(), *material().shots.values())
        for i in p.images
    }
    made = world().images((*world().forget, *world().retain[:4]), 20)
    assert not pixels & {i.numpy().tobytes() for i in made.images}


def test_a_scrambled_name_is_lost_and_no_other() -> None:
    after = scramble_names(world(), world().forget)
    assert accuracy(after, "forget") < 0.2
    assert accuracy(after, "retain") > 0.95


def test_exchanged_names_answer_for_each_other() -> None:
    after = exchange_names(world())
    part = material().test["forget"].first(5)
    logits = Subject(after).logits(part, material().names, material().templates)
    swapped = torch.tensor([world().forget[1 - world().forget.index(int(c))] for c in part.labels])
    assert (logits.argmax(1) == swapped).float().mean() > 0.9


def outcome(truth: str, verdict: str, again: str, residue: float, seed: int = 5) -> bench._Outcome:
    return bench._Outcome("k" + truth, truth, seed, verdict, again, "1: x", "y", {"a": residue, "answers": 0.0},
                          {"a": "posterior", "answers": "behaviour"}, 1.0)  # fmt: skip


def test_numbers_are_counted_right() -> None:
    outcomes = [
        outcome("forgotten", "forgotten", "forgotten", 0.0),
        outcome("forgotten", "inconclusive", "forgotten", 0.1),
        outcome("suppressed", "forgotten", "forgotten", 0.9),
        outcome("suppressed", "suppressed", "suppressed", 0.8, seed=0),
        outcome("retained", "retained", "forgotten", 1.0),
    ]
    found = bench._summary(outcomes, [2.0, 3.0, 10.0], [5.0, 9.0], "full")
    assert found["false_forgotten"] == pytest.approx(2 / 3), "another seed's counts too"
    assert found["right_verdict"] == pytest.approx(3 / 5)
    assert found["right_verdict_held_out"] == pytest.approx(2 / 4)
    assert found["verdict_flips"] == pytest.approx(2 / 5)
    assert found["confusion"]["suppressed"] == {"forgotten": 1, "suppressed": 1}
    assert found["posterior_auroc"] == 1.0
    assert found["behaviour_auroc"] == 0.5
    assert found["auroc"]["a"] == 1.0
    assert found["quick_seconds"] == 3.0
    assert found["certificate_seconds"] == 9.0
    assert bench._summary(outcomes, [2.0], [], "quick")["certificate_seconds"] is None
    assert set(bench.TUNED_ON) < set(range(len(REQUESTS))), "some seeds are kept for the end"
    assert len(found["wrong"]) == 2


def cosines(clip: Clip) -> torch.Tensor:
    part, m = material().test["retain"].first(2), material()
    return Subject(clip).zero_shot(part, m.names, m.templates)


def test_permuted_and_turned_weights_are_the_same_function() -> None:
    other = turned(permuted(world().base, 3), 3)
    torch.testing.assert_close(cosines(other), cosines(world().base), atol=2e-5, rtol=0)
    assert not torch.equal(other.model.text_projection, world().base.model.text_projection)


def test_a_name_passed_on_means_the_other_class_and_back_only_if_asked() -> None:
    others = world().strangers(2)
    part, m = material().test["forget"].first(5), material()

    def answers(clip: Clip) -> torch.Tensor:
        return Subject(clip).logits(part, m.names, m.templates).argmax(1)

    back = answers(pass_name_on(world(), others, back=True))
    moved = torch.tensor([others[world().forget.index(int(c))] for c in part.labels])
    assert (back == moved).float().mean() > 0.9
    assert (answers(pass_name_on(world(), others, back=False)) == moved).float().mean() < 0.1


def test_damage_is_a_right_verdict_where_it_was_measured_and_never_of_what_is_truly_forgotten() -> (
    None
):
    harmed = replace(outcome("suppressed", "damaged", "damaged", 0.0), harmed=0.06)
    assert harmed.right
    assert not replace(harmed, harmed=0.05).right
    assert not replace(harmed, truth="forgotten").right
    assert bench._summary([harmed], [1.0], [1.0], "quick")["harmed"] == ["5 ksuppressed: 0.06"]


def test_harm_is_what_the_kept_classes_lost_on_images_of_their_own() -> None:
    m, kept = material(), world().retain[:11]
    forgotten = scramble_names(world(), world().forget)
    lost = bench._harm(world(), bare(world(), forgotten), m)
    assert lost < 0.02
    also = scramble_names(world(), (*world().forget, *kept))
    share = len(kept) / len(world().retain)
    assert bench._harm(world(), bare(world(), also), m) >= share - 0.05
    seen = {i.numpy().tobytes() for p in (*m.test.values(), *m.shots.values()) for i in p.images}
    own = world().images(kept, 10, first=80).images
    made = world().images(kept, 80).images
    assert not {i.numpy().tobytes() for i in own} & (seen | {i.numpy().tobytes() for i in made})


def test_a_verdict_that_a_kind_allows_as_well_is_right_and_forgotten_is_never_one() -> None:
    assert replace(outcome("suppressed", "damaged", "damaged", 0.0), or_else=("damaged",)).right
    assert not outcome("suppressed", "damaged", "damaged", 0.0).right
    assert all("forgotten" not in kind.or_else for kind in KINDS)


def test_a_doubt_is_accepted_where_the_kind_allows_it_and_right_only_where_nothing_can_be_known() -> (
    None
):
    allowed = replace(
        outcome("suppressed", "inconclusive", "inconclusive", 0.0), or_else=("inconclusive",)
    )
    assert allowed.accepted
    assert not allowed.right
    assert replace(allowed, truth="inconclusive").right
    found = bench._summary([allowed], [1.0], [1.0], "quick")
    assert (found["right_verdict"], found["right_or_doubted"]) == (0.0, 1.0)


def test_the_quick_bench_names_kinds_that_there_are() -> None:
    assert len(bench._few()) == len(bench._CHEAP)


def test_strangers_are_neither_known_nor_taught() -> None:
    assert not {*known_classes(), *world().new} & set(world().strangers(10))


@cache
def cifar() -> CifarWorld:
    """CIFAR-100 in name only: the world is about classes and names, not about pixels."""
    names = tuple(name.replace("_", " ") for name in class_folders())
    rows = torch.arange(5000)
    pixels = torch.zeros(5000, 3, 1, 2, dtype=torch.uint8)
    pixels[:, 0, 0] = torch.stack([rows % 256, rows // 256], 1).byte()  # no two images alike
    images = TensorImages(pixels, rows % 100, "train")
    data = ImageData("cifar100", names, images, images, frozenset(cifar_known()))
    return CifarWorld(0, data, load_clip("cifar100-tiny"))


def test_the_classes_asked_of_cifar_share_no_token_with_another() -> None:
    rows = [set(token_rows(cifar(), c)) for c in range(100)]
    for label in cifar().forget:
        assert label in cifar_known()
        assert not any(rows[label] & other for c, other in enumerate(rows) if c != label)
    assert not set(cifar().forget) & set(cifar().retain)


def test_case_makers_of_cifar_get_other_training_images_than_the_verifier() -> None:
    here = CifarWorld(0, cifar().data, cifar().base)
    mine = {i.numpy().tobytes() for i in here.images(range(100), 25).images}
    theirs = {i.numpy().tobytes() for i in here._attackers.train.images(torch.arange(2500))}
    assert len(mine) == len(theirs) == 2500
    assert not mine & theirs


def test_the_kinds_of_cifar_need_no_twin() -> None:
    found = kinds()
    assert len(found) == 11
    assert {k.truth for k in found} == {"forgotten", "suppressed", "retained", "damaged"}


def test_a_case_that_cannot_be_made_is_told_and_the_others_go_on() -> None:
    def fails(world: World) -> bench.Case:
        made(False, "nothing came back")
        raise AssertionError

    easy = next(kind for kind in KINDS if kind.name == "nothing done")
    kinds = [Kind("broken", "suppressed", fails), easy]
    missing: list[str] = []
    told: list[str] = []
    found = [kind.name for kind, _ in cases(world(), kinds, missing, told.append)]
    assert found == ["nothing done"]
    assert missing == ["0 broken: nothing came back"] and "broken" in told[0]
