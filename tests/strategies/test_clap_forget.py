"""The strategy lives through small real streams; what it did is looked up in its tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor

from clapforget import Clip
from clapforget.scenarios import Forget, ImageData, Learn, stream
from clapforget.strategies import ClapForget, TrainSettings, UncertaintyBuffer, UnlearningPlugin
from clapforget.strategies.measure import Snapshot, snapshot

MakeStrategy = Callable[..., ClapForget]


def head_state(strategy: ClapForget) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in strategy.model.head.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


# ---- the example of the design -------------------------------------------------------------
def test_the_example_of_the_design_runs_as_written(clip: Clip, data: ImageData) -> None:
    benchmark = stream(data, [Learn(range(0, 3)), Learn(range(3, 5)), Forget([3]), Learn([5])])
    strategy = ClapForget(
        clip,
        forgetter="cliperase",
        memory=UncertaintyBuffer(max_size=60, score="mutual_information"),
        certify="quick",
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert strategy.certificates[0].verdict == "forgotten"
    assert strategy.certificates[0].evidence_by_name("answers").value == 0  # type: ignore[union-attr]


# ---- a stream with everything in it --------------------------------------------------------
class Life:
    """What was seen after every experience of one stream."""

    SEQUENCE = "L0-5 F1 L6,7 F5 L8 L1"

    def __init__(self, strategy: ClapForget, data: ImageData) -> None:
        self.strategy, self.data = strategy, data
        self.seen: list[Snapshot] = []
        self.states: list[dict[str, Tensor]] = []
        self.weights: list[dict[int, Tensor]] = []
        self.nats: list[dict[int, float]] = []
        self.memory: list[set[int]] = []
        self.clip: list[dict[str, str]] = []
        self.encoded: list[int] = []
        self.new_images: list[int] = []
        self.cached: list[dict[int, int]] = []
        for experience in stream(data, self.SEQUENCE).train_stream:
            before = strategy.cache.encoded
            certifier, strategy.certifier = strategy.certifier, None  # it encodes test images
            strategy.train(experience)
            strategy.certifier = certifier
            self.encoded.append(strategy.cache.encoded - before)
            self.new_images.append(len(experience.dataset))
            self._note(list(experience.learned_classes))

    def _note(self, retained: list[int]) -> None:
        strategy, head = self.strategy, self.strategy.model.head
        head.eval()
        labels = head.labels.tolist()
        with torch.no_grad():
            own = torch.cat(list(head.weights()), 1)
        self.weights.append({c: row.clone() for c, row in zip(labels, own)})
        self.nats.append(dict(zip(labels, head.nats().tolist())))
        self.memory.append(set(strategy.memory.classes))
        clip = strategy.model.clip
        self.clip.append({"image": clip.fingerprint("image"), "text": clip.fingerprint("text")})
        filled = strategy.cache._filled[(self.data.train.fingerprint, False)]
        features = strategy.cache._features[(self.data.train.fingerprint, False)]
        held = filled | features.ne(0).any(1)
        self.cached.append({c: int(held[self.data.rows("train", [c])].sum()) for c in range(10)})
        self.seen.append(snapshot(strategy, self.data, retained))


@pytest.fixture(scope="module")
def life(data: ImageData, make_strategy: MakeStrategy) -> Life:
    return Life(make_strategy(), data)


LEARNS, FORGETS = (0, 2, 4, 5), (1, 3)


def test_what_is_taught_is_answered(life: Life) -> None:
    for label, accuracy in life.seen[0].strategy.items():
        assert accuracy > 0.8, label


@pytest.mark.parametrize(("event", "label"), [(1, 1), (3, 5)])
def test_a_forgotten_class_is_gone_from_answers_and_from_clip(
    life: Life, event: int, label: int
) -> None:
    assert life.seen[event - 1].strategy[label] > 0.8
    assert life.seen[event].strategy[label] == 0
    assert life.seen[event].clip[label] == 0


def test_clip_really_knew_the_known_class_before(life: Life) -> None:
    assert life.seen[0].clip[1] > 0.9


@pytest.mark.parametrize("event", FORGETS)
def test_a_forget_request_spares_what_is_retained(life: Life, event: int) -> None:
    before, after = life.seen[event - 1], life.seen[event]
    gone = {1: {1}, 3: {1, 5}}[event]
    kept = [c for c in after.strategy if c not in gone]
    assert sum(after.strategy[c] for c in kept) > sum(before.strategy[c] for c in kept) - 0.05 * len(kept)  # fmt: skip
    bystanders = [c for c in (life.data.known or ()) if c > 9]
    assert sum(after.clip[c] for c in bystanders) / len(bystanders) > 0.9


@pytest.mark.parametrize(("event", "label"), [(1, 1), (3, 5)])
def test_memory_and_cache_drop_a_forgotten_class(life: Life, event: int, label: int) -> None:
    assert label in life.memory[event - 1]
    assert life.cached[event - 1][label] == 20
    for later in range(event, 5):
        assert label not in life.memory[later]
        assert life.cached[later][label] == 0
    kept = [c for c in life.memory[event - 1] if c != label]
    assert life.memory[event] == set(kept)
    assert all(life.cached[event][c] == 20 for c in kept)


@pytest.mark.parametrize(("event", "label"), [(1, 1), (3, 5)])
def test_the_posterior_of_a_forgotten_class_is_the_prior(
    life: Life, event: int, label: int
) -> None:
    assert life.nats[event - 1][label] > 1
    assert life.nats[event][label] < 0.01


@pytest.mark.parametrize(("event", "label"), [(1, 1), (3, 5)])
def test_the_weights_of_retained_classes_do_not_move(life: Life, event: int, label: int) -> None:
    before, after = life.weights[event - 1], life.weights[event]
    assert before.keys() == after.keys()
    for column in before.keys() - {1, label}:
        d = life.strategy.model.clip.width
        x, mu, sigma = before[column].split(d)
        now = after[column].split(d)
        assert torch.allclose(x + mu, now[0] + now[1], atol=1e-3), column
        assert torch.allclose(sigma, now[2], atol=1e-3), column
    assert (before[label] - after[label]).abs().max() > 0.1


def test_later_learning_brings_nothing_back(life: Life) -> None:
    for event in (2, 3, 4):
        assert life.seen[event].strategy[1] == 0
        assert life.seen[event].clip[1] == 0
        assert life.nats[event][1] < 0.01
    for event in (4, 5):
        assert life.seen[event].strategy[5] == 0
        assert life.nats[event][5] < 0.01


def test_a_forgotten_class_can_be_learned_again(life: Life) -> None:
    assert life.seen[5].strategy[1] > 0.8
    assert life.nats[5][1] > 1
    assert 1 in life.memory[5]
    head = life.strategy.model.head
    assert head.labels.tolist().count(1) == 1
    assert not head.retired[head.columns([1])].any()


@pytest.mark.parametrize("event", LEARNS)
def test_learning_leaves_clip_as_it_is(life: Life, event: int, clip: Clip) -> None:
    before = life.clip[event - 1] if event else {t: clip.fingerprint(t) for t in ("image", "text")}  # type: ignore[arg-type]
    assert life.clip[event] == before


def test_forgetting_changes_clips_text_tower(life: Life) -> None:
    for event in FORGETS:
        assert life.clip[event]["text"] != life.clip[event - 1]["text"]
        assert life.clip[event]["image"] == life.clip[event - 1]["image"]


def test_the_model_given_by_the_user_is_never_touched(life: Life, clip: Clip) -> None:
    assert life.clip[-1]["text"] != clip.fingerprint("text")
    assert life.strategy.model.clip is not clip
    assert clip.fingerprint() == load_fresh().fingerprint()


def load_fresh() -> Clip:
    from clapforget import load_clip

    return load_clip("lab-tiny")


@pytest.mark.parametrize("event", LEARNS)
def test_every_train_image_is_encoded_once_in_a_whole_learn_experience(
    life: Life, event: int
) -> None:
    assert life.encoded[event] == life.new_images[event]


def test_a_forget_request_encodes_no_train_image_for_the_cache(life: Life) -> None:
    assert [life.encoded[event] for event in FORGETS] == [0, 0]


# ---- what each stage trains ----------------------------------------------------------------
class Stages(UnlearningPlugin, supports_distributed=False):
    """Copies every parameter at the start of each stage and at the end, and what has gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, dict[str, Tensor]] = {}
        self.graded: dict[str, set[str]] = {}

    def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter == 1 and strategy.stage not in self.at:
            self.at[strategy.stage] = self._copy(strategy)

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        found = {
            name for name, parameter in strategy.model.named_parameters()
            if parameter.requires_grad and parameter.grad is not None and parameter.grad.any()
        }  # fmt: skip
        if strategy.clock.train_exp_counter == 1:
            self.graded.setdefault(strategy.stage, set()).update(found)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.at["end"] = self._copy(strategy)

    def _copy(self, strategy: Any) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in strategy.model.named_parameters()}


@pytest.fixture(scope="module")
def stages(data: ImageData, make_strategy: MakeStrategy) -> Stages:
    plugin = Stages()
    make_strategy(plugins=[plugin]).train(stream(data, "L0-3 L4,5").train_stream)
    return plugin


def moved(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one, other)


def test_stage_one_trains_attention_and_the_newest_adapter_only(stages: Stages) -> None:
    first, second = stages.at["newest"], stages.at["all"]
    for name, value in first.items():
        if name.startswith("clip."):
            assert not moved(value, second[name]), name
    attention = [n for n in first if n.startswith("head.attention.")]
    assert all(moved(first[n], second[n]) for n in attention if n.endswith("linear1.weight"))
    assert not moved(first["head.adapters.weight"], second["head.adapters.weight"][:1])
    assert not moved(first["head.adapters.bias"], second["head.adapters.bias"][:1])
    assert moved(first["head.adapters.open_weight"], second["head.adapters.weight"][1:])
    allowed = {*attention, "head.adapters.open_weight", "head.adapters.open_bias"}
    assert stages.graded["newest"] <= allowed
    assert {"head.adapters.open_weight", "head.adapters.open_bias"} <= stages.graded["newest"]


def test_stage_two_trains_all_adapters_only(stages: Stages) -> None:
    second, end = stages.at["all"], stages.at["end"]
    for name, value in second.items():
        if not name.startswith("head.adapters."):
            assert not moved(value, end[name]), name
    for task in (0, 1):
        assert moved(second["head.adapters.weight"][task], end["head.adapters.weight"][task])
    assert stages.graded["all"] == {"head.adapters.weight", "head.adapters.bias"}


def test_the_first_task_has_no_second_stage(data: ImageData, make_strategy: MakeStrategy) -> None:
    epochs: list[str] = []

    class Epochs(UnlearningPlugin, supports_distributed=False):
        def before_training_epoch(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
            epochs.append(strategy.stage)

    strategy = make_strategy(plugins=[Epochs()])
    strategy.train(stream(data, "L0-3 L4,5").train_stream)
    assert epochs == ["newest"] * 5 + ["newest"] * 5 + ["all"] * 2


# ---- as an Avalanche strategy --------------------------------------------------------------
class Outputs(UnlearningPlugin, supports_distributed=False):
    """Keeps every output and its batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, int, bool]] = []

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        self.seen.append((strategy.mb_output.detach(), len(strategy.mb_y), strategy.is_training))

    after_eval_forward = after_forward


def test_outputs_are_log_probabilities_over_all_class_labels(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    plugin = Outputs()
    strategy = make_strategy(plugins=[plugin], forgetter="nothing", certify=False)
    benchmark = stream(data, "L0-3 F1 L4,5")
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert {training for _, _, training in plugin.seen} == {True, False}
    for output, size, _ in plugin.seen:
        assert output.shape == (size, data.num_classes)
        assert torch.allclose(output.exp().sum(1), torch.ones(size), atol=1e-4)
        assert torch.isfinite(output).all()


def test_it_can_be_evaluated_before_it_has_learned(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    benchmark = stream(data, "L0-3")
    make_strategy().eval(benchmark.test_stream)


def test_avalanches_periodic_evaluation_changes_nothing(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    results = []
    for every in (-1, 1):
        torch.manual_seed(0)
        strategy = make_strategy(eval_every=every)
        benchmark = stream(data, "L0-2 L3,4")
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        results.append(head_state(strategy))
    assert_same(*results)


def test_the_users_list_of_plugins_is_left_alone(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    plugins = [Outputs()]
    first = make_strategy(plugins=plugins)
    second = make_strategy(plugins=plugins)
    assert len(plugins) == 1
    assert first.plugins is not second.plugins
    first.train(stream(data, "L0,1").train_stream)
    assert len(plugins) == 1


def test_without_certify_there_are_no_certificates(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy(forgetter="nothing", certify=False)
    strategy.train(stream(data, "L0-3 F1").train_stream)
    assert strategy.certificates == []
    assert strategy.last_forgetting is not None


def test_there_is_one_certificate_a_forget_request(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy(forgetter="nothing", certify="quick")
    strategy.train(stream(data, "L0-3 F1 L4,5 F0,4").train_stream)
    assert [c.request["classes"] for c in strategy.certificates] == [[1], [0, 4]]
    assert [c.event for c in strategy.certificates] == [1, 3]
    assert [c.forget_data["count"] for c in strategy.certificates] == [20, 40]


# ---- randomness and independence -----------------------------------------------------------
def lived(strategy: ClapForget, data: ImageData, sequence: str) -> dict[str, Tensor]:
    strategy.train(stream(data, sequence).train_stream)
    return head_state(strategy)


def test_the_seed_alone_decides_what_is_learned(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    states = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(other)
        states.append(lived(make_strategy(seed=seed), data, "L0-3 L4,5"))
    assert moved(states[0]["adapters.weight"], states[2]["adapters.weight"])
    assert_same(states[0], states[1])


def test_two_strategies_in_one_process_do_not_influence_each_other(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    torch.manual_seed(0)
    alone = lived(make_strategy(), data, "L0-2 L3,4")
    torch.manual_seed(0)
    one, other = make_strategy(), make_strategy(seed=5)
    for experience in stream(data, "L0-2 L3,4").train_stream:
        other.train(experience)
        one.train(experience)
    assert_same(alone, head_state(one))
    assert not {id(p) for p in one.model.parameters()} & {id(p) for p in other.model.parameters()}


def test_the_global_generator_is_left_as_it_was(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    make_strategy()
    assert torch.equal(torch.rand(4), expected)


def test_denormals_are_flushed_during_training_only(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    make_strategy().train(stream(data, "L0,1").train_stream)
    assert torch.tensor([1e-39]).mul(0.5).ne(0).all()


# ---- options -------------------------------------------------------------------------------
def test_the_pyro_form_trains_as_well(data: ImageData, make_strategy: MakeStrategy) -> None:
    strategy = make_strategy(training=TrainSettings(elbo="pyro"), forgetter="nothing")
    strategy.train(stream(data, "L0-3 L4,5").train_stream)
    seen = snapshot(strategy, data, range(6))
    assert min(seen.strategy.values()) > 0.5
    assert sum(seen.strategy.values()) / 6 > 0.8


def test_without_guidance_it_learns_and_forgets(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    from clapforget.posterior import ClapSettings

    settings = ClapSettings(guidance="none", context="single")
    strategy = make_strategy(head=settings)
    assert not any("attention" in name for name in strategy.model.head.state_dict())
    for experience in stream(data, "L0-2 L3,4 F3").train_stream:
        strategy.train(experience)
    head = strategy.model.head
    labels = head.labels.tolist()
    assert head.nats()[labels.index(3)] < 1e-4 < head.nats()[labels.index(4)]
    v = strategy.memory_views[:, 0]
    alone = head.predict(v[:1]).probs
    torch.testing.assert_close(alone, head.predict(v).probs[:1])


@pytest.mark.parametrize("options", [{"context": "batch"}, {"predictive": "mean-logit"}])
def test_the_released_choices_run(
    data: ImageData, make_strategy: MakeStrategy, options: dict[str, Any]
) -> None:
    from clapforget.posterior import ClapSettings

    strategy = make_strategy(head=ClapSettings(**options), forgetter="nothing")
    strategy.train(stream(data, "L0-3 F1 L4").train_stream)
    seen = snapshot(strategy, data, [0, 2, 3, 4])
    assert sum(seen.strategy[c] for c in (0, 2, 3, 4)) / 4 > 0.8


def test_it_learns_from_a_benchmark_that_is_not_ours(data: ImageData, make_strategy: MakeStrategy) -> None:  # fmt: skip
    from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
    from torch.utils.data import Subset

    rows = {s: data.rows(s, range(4)).tolist() for s in ("train", "test")}  # type: ignore[arg-type]

    def some(split: str) -> Any:
        whole = data.train if split == "train" else data.test
        part = Subset(whole, rows[split])
        part.targets = whole.targets[rows[split]].tolist()  # type: ignore[attr-defined]
        return part

    benchmark = class_incremental_benchmark(
        {"train": some("train"), "test": some("test")}, class_order=[0, 1, 2, 3], num_experiences=2
    )
    strategy = make_strategy()
    strategy.model.describe(data.class_names, data.templates)
    strategy.train(benchmark.train_stream)
    assert sorted(strategy.memory.classes) == [0, 1, 2, 3]
    answers = strategy.model.eval()(data.test.images(torch.tensor(rows["test"]))).argmax(1)
    assert (answers == data.test.targets[rows["test"]]).float().mean() > 0.8


def test_a_memory_of_the_users_is_used_and_not_replaced(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    memory = UncertaintyBuffer(8, "random")  # empty, hence false in a truth test
    strategy = make_strategy(memory=memory)
    strategy.train(stream(data, "L0-3").train_stream)
    assert strategy.memory is memory
    assert len(memory) == 8
    assert len(strategy.memory_views) == 8
    encoded = strategy.model.clip.encode_image(memory.images)
    assert torch.allclose(strategy.memory_views[:, 0], encoded, atol=1e-5)


def test_exemplars_are_those_the_posterior_is_most_uncertain_of(
    data: ImageData, make_strategy: MakeStrategy
) -> None:
    strategy = make_strategy(memory=UncertaintyBuffer(8, "entropy"))
    experience = stream(data, "L0-3").train_stream[0]
    head_before: list[Tensor] = []
    predict = strategy.exemplar_predictive

    def listen(exp: Any, reads: Any) -> Any:
        seen = predict(exp, reads)
        head_before.append(seen.entropy.clone())
        return seen

    strategy.exemplar_predictive = listen  # type: ignore[method-assign]
    strategy.train(experience)
    (scores,) = head_before
    ids = torch.tensor(list(experience.dataset.sample_id))
    labels = data.train.targets[ids]
    for label in range(4):
        own = (labels == label).nonzero().flatten()
        held = strategy.memory.sample_ids[strategy.memory.labels == label]
        kept = scores[torch.isin(ids, held)]
        assert kept.sort().values.tolist() == scores[own].sort().values[-2:].tolist()


def test_a_strategy_can_be_copied(data: ImageData, make_strategy: MakeStrategy) -> None:
    strategy = make_strategy(evaluator=EvaluationPlugin())
    strategy.train(stream(data, "L0,1").train_stream)
    twin = copy.deepcopy(strategy.model)
    assert_same(dict(twin.state_dict()), dict(strategy.model.state_dict()))
