from __future__ import annotations

import numpy as np
import pytest

from clapforget.scenarios import Forget, Learn, check_requests
from clapforget.scenarios.plan import Plan

PLAN = Plan(((2, 3), (4, 1)), {1: ("new",), 2: ("known", "new")}, unseen=(2, 5))


def test_order_is_a_permutation_with_the_tasks_first_and_the_unseen_last(small_lab):
    order = PLAN.order(small_lab, np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    is_known = [c in small_lab.known for c in order]
    assert (sum(is_known[:5]), sum(is_known[5:10])) == (2, 4)
    assert is_known[10:64] == [True] * 54
    assert set(order[98:]) == {2, 5}


def test_same_seed_same_order_other_seed_other_order(small_lab):
    orders = [PLAN.order(small_lab, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("seed", range(5))
def test_wishes_are_met(small_lab, seed):
    rng = np.random.default_rng(seed)
    data = small_lab.reorder(PLAN.order(small_lab, rng))
    requests = PLAN.requests(data, rng)
    assert [type(request) for request in requests] == [Learn, Forget, Learn, Forget]
    check_requests(requests, data.num_classes, data.known)
    (first,) = requests[1].classes
    known, new = requests[3].classes
    assert first < 5
    assert (first in data.known, known in data.known, new in data.known) == (False, True, False)
    assert (known < 5) != (new < 5)


def test_wishes_that_cannot_be_met_yield(small_lab):
    """A hand-made order may leave a task without a class of the wished kind."""
    only_new = small_lab.reorder(sorted(range(100), key=lambda c: c in small_lab.known))
    requests = PLAN.requests(only_new, np.random.default_rng(0))
    assert [len(request.classes) for request in requests] == [5, 1, 5, 2]
    tiny = Plan(((0, 1), (0, 1)), {1: ("any",), 2: ("any", "any")})
    kinds = [request.kind for request in tiny.requests(small_lab, np.random.default_rng(0))]
    assert kinds == ["learn", "learn", "forget"]
