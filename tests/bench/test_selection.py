"""Exemplar scores side by side: what is offered to each memory, and what the table says."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from clapforget import UserError
from clapforget.bench.selection import LEARNERS, Panel, _table, all_scores, markdown, measure
from clapforget.posterior import Predictive
from clapforget.strategies.buffer import UncertaintyBuffer


def offered(n: int, first: int, seed: int) -> tuple[torch.Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 4, 4), generator=rng, dtype=torch.uint8)
    labels = first + torch.arange(n) % 2
    v = torch.nn.functional.normalize(torch.randn(n, 5, generator=rng), dim=-1)
    return images, labels, 100 * first + torch.arange(n), v, torch.rand(n, 4, generator=rng)


def says(scores: torch.Tensor) -> Predictive:
    """A posterior without draws that holds these probabilities, before they are normalised."""
    probs = scores / scores.sum(1, keepdim=True)
    entropy = torch.special.entr(probs).sum(1)
    return Predictive(probs, entropy, entropy, 0 * entropy, 0 * entropy, entropy)


@pytest.mark.parametrize("score", ["random", "entropy", "herding", "coverage"])
def test_a_memory_on_a_panel_keeps_what_it_would_keep_alone(score: str) -> None:
    alone, guest = (UncertaintyBuffer(8, score, 3) for _ in range(2))
    panel = Panel(6, 0, [guest])
    for first in (0, 2):
        images, labels, ids, v, probs = offered(20, first, first)
        alone.add(images, labels, ids, says(probs), v, labels)
        held = len(panel)
        probs, v, columns = (torch.cat([new[:held], new]) for new in (probs, v, labels))
        panel.add(images, labels, ids, says(probs), v, columns, with_held=True)
    assert torch.equal(alone.sample_ids, guest.sample_ids) and len(guest) == 8
    assert len(panel) == 6 and panel.refused == {}


def test_a_score_that_the_posterior_cannot_answer_is_put_aside_with_its_reason() -> None:
    images, labels, ids, v, probs = offered(10, 0, 0)
    others = [UncertaintyBuffer(4, score) for score in ("expected_energy", "random")]
    panel = Panel(4, 0, others)
    panel.add(images, labels, ids, says(probs), v, labels)
    assert (
        list(panel.refused) == ["expected_energy"] and "draws" in panel.refused["expected_energy"]
    )
    assert [other.score for other in panel.others] == ["random"]


def test_differences_are_paired_by_seed() -> None:
    values = {"coverage": [0.6, 0.8, 0.7], "random": [0.5, 0.6, 0.6]}
    rows = {f"{name}/5/{score}": of for name in LEARNERS for score, of in values.items()}
    table = _table(rows, list(values), [5], "coverage")
    gap = table["exact"]["random"]["5"]["difference"]
    low, high = stats.ttest_rel(values["random"], values["coverage"]).confidence_interval()
    assert (gap["low"], gap["high"]) == pytest.approx((low, high), abs=1e-4)
    text = markdown({"table": table, "seeds": [0, 1, 2], "each": [5], "reference": "coverage"})
    assert text.index("`coverage` |") < text.index("`random` |") and "-0.133" in text


def test_mistakes_stop_before_anything_runs() -> None:
    with pytest.raises(UserError, match="nonesuch"):
        measure("lab-smoke", scores=["nonesuch"])
    with pytest.raises(UserError, match="reference"):
        measure("lab-smoke", scores=["random"])
    assert "entropy:low" in all_scores() and "random:low" not in all_scores()


def test_on_a_small_stream_herded_exemplars_teach_more_than_the_most_doubtful_ones() -> None:
    found = measure("lab-smoke", each=(1,), scores=["herding", "entropy"], reference="herding")
    assert found["rows"]["nearest-mean/1/herding"][0] > 0.8
    gap = found["table"]["nearest-mean"]["entropy"]["1"]["difference"]["mean"]
    assert gap < -0.02


@pytest.mark.parametrize("strategy", ["exact", "clapforget"])
def test_every_score_is_told_what_it_reads(strategy: str) -> None:
    """Also those that ask more of the posterior than the panel's own score does."""
    scores = ["energy", "mutual_information", "coverage"]
    quick = (
        {} if strategy == "exact" else {"training.epochs": 1, "training.consolidation_epochs": 0}
    )
    found = measure("lab-smoke", strategy, each=(1,), scores=scores, settings=quick)
    for score in scores:
        assert found["rows"][f"nearest-mean/1/{score}"][0] > 0.5
