"""Three forms of one objective, for every allowed combination of options: the closed form, the Pyro
model, and CLAP's loops written out task by task, class by class, sample by sample."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from clapforget.errors import UserError
from clapforget.posterior import ClapSettings, LogitNoise, VariationalHead
from clapforget.posterior.pyro_form import elbo_loss
from clapforget.posterior.terms import regularisers
from tests.posterior.by_hand import decoder_by_hand

WIDTH, M, MG, B = 6, 2, 2, 3
TASKS = [[0, 10], [20], [30, 40, 50]]
GONE = [10]

GRID = {
    "guidance": ["attention", "none"],
    "latent": ["gaussian", "point"],
    "hierarchical": [False, True],
    "prior": ["standard", "neural-process", "frozen", "previous"],
    "tokens": [False, True],
    "normalise": ["none", "guidance", "weights"],
    "over_tasks": ["sum", "mean"],
}
BESIDE = {"orthogonality_weight": 5.0, "distillation_weight": 0.3}  # both or none: they are added
ALONE = [
    {"orthogonality_weight": 5.0}, {"distillation_weight": 0.3},
    {"kl_weight": 0.0}, {"language_weight": 0.0}, {"kl_weight": 0.0, "language_weight": 0.0},
    {"heads": 2}, {"heads": 3}, {"templates": 1},
]  # fmt: skip
"""What the grid holds fixed, each by itself ..."""
UNDER = [
    {}, {"hierarchical": True}, {"latent": "point"}, {"prior": "previous", "tokens": True},
    {"prior": "neural-process", "normalise": "weights"},
]  # fmt: skip
"""... under some of the grid's combinations."""


def allowed() -> list[dict]:
    found = []
    for *values, beside in itertools.product(*GRID.values(), [{}, BESIDE]):
        options = dict(zip(GRID, values)) | beside
        try:
            ClapSettings(**options)
        except UserError:
            continue
        found.append(options)
    return found


COMBINATIONS = allowed()


def name_of(options: dict) -> str:
    return "-".join(f"{k}={v}" if k not in GRID else str(v) for k, v in options.items())


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def grown(templates: int = 2, **options) -> VariationalHead:
    """Three tasks in float64; two of them were there when the model before was kept, and since then
    everything has moved; one class is forgotten where that can be."""
    settings = {"samples": M, "top_samples": MG, "feedforward": 8, "prior_context": 0.5, **options}
    head = VariationalHead(WIDTH, 5.0, ClapSettings(**settings), 0).double()
    for number, labels in enumerate(TASKS):
        head.grow(labels, F.normalize(normals(number, len(labels), templates, WIDTH), dim=-1))
        with torch.no_grad():
            for place, parameter in enumerate(head.parameters()):
                if parameter.requires_grad:
                    parameter += 0.2 * normals(50 * number + place, *parameter.shape)
        if number == 1:
            head.settle()
    if not head.settings.hierarchical:
        head.retire(GONE)
    return head.eval()


# ---- the loops -----------------------------------------------------------------------------
class Loops:
    """What a loss is made of, for the tasks that some parts (the head's, or those before) know."""

    def __init__(self, head: VariationalHead, parts, context: Tensor) -> None:
        self.parts = parts
        self.weight = torch.cat([parts.adapters.weight, parts.adapters.open_weight])
        self.bias = torch.cat([parts.adapters.bias, parts.adapters.open_bias])
        self.x: dict[int, Tensor] = {}
        for t in range(len(self.weight)):
            columns = [c for c in range(len(head.labels)) if head.task[c] == t]
            awake = [c for c in columns if not head.retired[c]]
            for c in columns:
                if head.retired[c]:
                    self._guide(head, [c], None, context)
            if awake:
                token = parts.tokens()[t] if parts.tokens is not None else None
                self._guide(head, awake, token, context)

    def _guide(self, head, columns: list[int], token: Tensor | None, context: Tensor) -> None:
        text = torch.stack([F.normalize(head.templates[c].mean(0), dim=0) for c in columns])
        queries = text if token is None else torch.cat([text, token[None]])
        answer = torch.zeros_like(text)
        if self.parts.attention is not None:
            answer = decoder_by_hand(self.parts.attention.layer, queries, context)
        for row, c in enumerate(columns):
            a = answer[row] if token is None else answer[row] + answer[-1]
            if head.settings.normalise == "guidance":
                a = a / a.norm()
            self.x[c] = text[row] + a

    def latent(self, head, c: int, x: Tensor) -> tuple[Tensor, Tensor]:
        t, d = int(head.task[c]), head.width
        mu = self.weight[t, :d] @ x + self.bias[t, :d]
        sigma = 0.999 * F.softplus(self.weight[t, d:] @ x + self.bias[t, d:]) + 0.001
        return mu, torch.zeros_like(mu) if head.settings.latent == "point" else sigma

    def above(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, raw = self.parts.top.linear(x).chunk(2)
        return mu, 0.999 * F.softplus(raw) + 0.001


def by_loops(  # noqa: PLR0912, PLR0915
    head: VariationalHead, v: Tensor, y: Tensor, stage: str, eps: Tensor, eps_top: Tensor, subset: Tensor,
) -> dict[str, Tensor]:  # fmt: skip
    """The terms of the loss. eps [M_g, M, C, d], eps_top [M_g, C, d]; M_g = 1 without a global latent."""
    s, classes = head.settings, len(head.labels)
    zero, awake = v.new_zeros(()), [c for c in range(classes) if not head.retired[c]]
    now = Loops(head, head, v)
    then = Loops(head, head.previous, v) if head.previous is not None else None
    some = Loops(head, head, v[subset])
    draws, samples = len(eps), 1 if s.latent == "point" else M

    def standard() -> Normal:
        return Normal(torch.zeros(WIDTH).double(), torch.ones(WIDTH).double())

    u: list[dict[int, Tensor]] = []
    z: list[list[dict[int, Tensor]]] = []
    q: list[dict[int, tuple[Tensor, Tensor]]] = []
    for g in range(draws):
        u.append({})
        for c in range(classes):
            u[g][c] = now.x[c]
            if s.hierarchical:
                mu, sigma = now.above(now.x[c])
                u[g][c] = u[g][c] + mu + sigma * eps_top[g, c]
        q.append({c: now.latent(head, c, u[g][c]) for c in range(classes)})
        z.append([
            {c: q[g][c][0] + q[g][c][1] * eps[g, m, c] for c in range(classes)}
            for m in range(samples)
        ])  # fmt: skip

    likelihood = zero
    for g, m, b in itertools.product(range(draws), range(samples), range(len(v))):
        logits = []
        for c in awake:
            length = (u[g][c] + q[g][c][0]).norm() if s.normalise == "weights" else 1
            logits.append(head.scale * v[b] @ (u[g][c] + z[g][m][c]) / length)
        log_p = torch.stack(logits).log_softmax(0)
        likelihood = likelihood - log_p[awake.index(int(y[b]))] / (draws * samples * len(v))

    def prior(g: int, c: int) -> Normal:
        if head.retired[c] or s.prior == "standard":
            return standard()
        if s.prior == "neural-process":
            return Normal(*now.latent(head, c, some.x[c]))
        if s.prior == "frozen":
            return Normal(*now.latent(head, c, head.templates[c].mean(0)))
        if head.task[c] == 2:
            return standard()
        if s.hierarchical:
            return Normal(*then.latent(head, c, u[g][c]))
        mu, sigma = then.latent(head, c, then.x[c])
        return Normal(then.x[c] + mu - now.x[c], sigma)

    def prior_above(c: int) -> Normal:
        if s.prior == "neural-process" and stage == "newest":
            return Normal(*now.above(some.x[c]))
        if s.prior == "previous" and head.task[c] < 2:
            mu, sigma = then.above(then.x[c])
            return Normal(then.x[c] + mu - now.x[c], sigma)
        return standard()

    tasks = [2] if stage == "newest" else [0, 1, 2]
    divergence = language = zero
    for t in tasks:
        own = [c for c in awake if head.task[c] == t]
        part = 1 / len(tasks) if s.over_tasks == "mean" else 1
        for row, c in enumerate(own):
            if s.latent == "gaussian":
                for g in range(draws):
                    kl = kl_divergence(Normal(*q[g][c]), prior(g, c)).sum()
                    divergence = divergence + part * kl / (len(own) * draws)
            sims = torch.zeros(len(own)).double()
            for g, m, template in itertools.product(
                range(draws), range(samples), head.templates[c]
            ):
                sims = sims + torch.stack([template @ z[g][m][o] for o in own])
            sims = sims / (draws * samples * len(head.templates[c]))
            language = language - part * sims.log_softmax(0)[row] / len(own)
    for c in range(classes):
        if head.retired[c] and s.latent == "gaussian":
            divergence = divergence + kl_divergence(Normal(*q[0][c]), standard()).sum()
    if s.hierarchical:
        for c in range(classes):
            kl = kl_divergence(Normal(*now.above(now.x[c])), prior_above(c)).sum()
            divergence = divergence + kl / classes
            sims = torch.stack([
                sum(head.templates[c].mean(0) @ (u[g][o] - now.x[o]) for g in range(draws)) / draws
                for o in range(classes)
            ])  # fmt: skip
            language = language - sims.log_softmax(0)[c] / classes

    mean = {c: sum(z[g][m][c] for g in range(draws) for m in range(samples)) / (draws * samples)
            for c in awake}  # fmt: skip
    apart = zero
    for row, c in enumerate(awake):
        sims = torch.stack([mean[c] @ mean[o] for o in awake])
        apart = apart - sims.log_softmax(0)[row] / len(awake)
    old = [c for c in awake if head.task[c] < 2]
    kept = zero
    if s.distillation_weight:
        for c in old:
            if s.hierarchical:
                difference = now.above(now.x[c])[0] - then.above(then.x[c])[0]
            else:
                difference = q[0][c][0] - then.latent(head, c, then.x[c])[0]
            kept = kept + difference.square().sum() / (len(old) * WIDTH)
    return {
        "likelihood": likelihood, "divergence": s.kl_weight * divergence,
        "language": s.language_weight * language,
        "orthogonality": s.orthogonality_weight * apart,
        "distillation": s.distillation_weight * kept,
    }  # fmt: skip


# ---- the grid ------------------------------------------------------------------------------
class Recorder(Messenger):
    """Keeps the first value of every sampled site: the guide's."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict) -> None:
        self.seen.setdefault(msg["name"], msg["value"])


@pytest.mark.parametrize("stage", ["newest", "all"])
@pytest.mark.parametrize(
    "options", [*COMBINATIONS, *(one | under for one in ALONE for under in UNDER)], ids=name_of
)
def test_closed_form_pyro_and_loops_are_one(options: dict, stage: str) -> None:
    head = grown(**{"kl_weight": 0.05, **options})
    s, classes = head.settings, 6
    awake = (~head.retired).nonzero().flatten()
    v, y = F.normalize(normals(9, B, WIDTH), dim=-1), awake[torch.arange(B)]
    subset = torch.tensor([1, 2])
    x = head.inputs(v)
    torch.manual_seed(0)
    with Recorder() as recorder:
        elbo = elbo_loss(head, x, v, y, stage, subset)

    eps_top = None
    if s.hierarchical:
        mu, sigma = head.top(x)
        eps_top = (recorder.seen["top"].reshape(MG, classes, WIDTH) - mu) / sigma
        assert eps_top.std() > 0.5, "no noise was drawn"
    weights, top = head.posterior(x, eps_top)
    eps = torch.zeros(1, 1, classes, WIDTH).double()
    if s.latent == "gaussian":
        shape = (MG, M, classes, WIDTH) if s.hierarchical else (M, classes, WIDTH)
        z = recorder.seen["z"].reshape(shape)
        eps = (z - weights.mu.unsqueeze(-3)) / weights.sigma.unsqueeze(-3)
        assert eps.std() > 0.5, "no noise was drawn"
        noise = LogitNoise.from_latent(eps, v, weights.sigma, head.mean_columns(stage), subset)
    else:
        noise = LogitNoise(
            torch.zeros(1, B, classes).double(),
            torch.zeros_like(weights.mu)[..., head.mean_columns(stage), :], subset
        )
    loss = head.loss(weights, v, y, stage, noise, top)
    beside = regularisers(head, weights, noise.mean_latent, v, stage, top)

    terms = by_loops(head, v, y, stage, eps if s.hierarchical else eps.reshape(1, -1, classes, WIDTH),
                     eps_top, subset)  # fmt: skip
    torch.testing.assert_close(
        elbo, terms["likelihood"] + terms["divergence"], rtol=1e-7, atol=1e-8
    )
    wanted = sum(terms.values())
    torch.testing.assert_close(elbo + beside, wanted, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(loss, wanted, rtol=1e-7, atol=1e-8)
    assert (terms["orthogonality"] != 0) == (s.orthogonality_weight > 0)
    assert (terms["distillation"] != 0) == (s.distillation_weight > 0)
    parameters = [p for p in head.parameters() if p.requires_grad and p.numel()]
    gradients = [
        torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        for value in (loss, elbo + beside, wanted)
    ]
    for ours, pyros, loops in zip(*gradients):
        torch.testing.assert_close(ours, loops, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(pyros, loops, rtol=1e-6, atol=1e-8)


def test_every_option_of_the_grid_changes_the_loss() -> None:
    def loss(**options) -> float:
        head = grown(kl_weight=1.0, **options)
        v, y = F.normalize(normals(9, B, WIDTH), dim=-1), torch.tensor([0, 2, 3])
        rng = torch.Generator().manual_seed(0)
        weights, top = head.posterior(head.inputs(v), head.top_noise(rng))
        return head.loss(weights, v, y, "all", head.draw(v, "all", rng), top).item()

    plain = loss()
    choices = GRID | {name: [0.0, weight] for name, weight in BESIDE.items()}
    for name, values in choices.items():
        for value in values[1:]:
            assert loss(**{name: value}) != pytest.approx(plain, rel=1e-6), (name, value)
    bare = 2 * 2 * 2 * (3 + 3 + 1)
    assert len(COMBINATIONS) == 2 * 3 * 2 * 2 * (4 + 4 + 1) + bare


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent": "point", "prior": "frozen"}, ("clap.latent", "clap.prior")),
        ({"latent": "point", "prior": "previous"}, ("clap.latent", "clap.prior")),
        ({"latent": "point", "hierarchical": True}, ("clap.latent", "clap.hierarchical")),
        ({"hierarchical": True, "uncertainty": "closed-form"}, ("uncertainty", "hierarchical")),
        ({"guidance": "none", "tokens": True}, ("clap.guidance", "clap.tokens")),
        ({"guidance": "none", "normalise": "guidance"}, ("clap.guidance", "clap.normalise")),
        ({"guidance": "none", "prior": "neural-process"}, ("clap.guidance", "clap.prior")),
        ({"prior_context": 0.0}, ("clap.prior_context=0.0",)),
        ({"prior_context": 1.1}, ("clap.prior_context=1.1",)),
        ({"top_samples": 0}, ("clap.top_samples=0",)),
    ],
)
def test_options_that_exclude_each_other_say_so(options: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        ClapSettings(**options)
    for word in words:
        assert word in str(error.value)
