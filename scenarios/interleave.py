"""An Avalanche benchmark whose train stream interleaves learning and forgetting."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from avalanche.benchmarks.scenarios import (
    CLScenario,
    EagerCLStream,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils import DataAttribute
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from torch import Tensor

from clapforget.errors import UserError
from clapforget.scenarios.data import ImageData, LabelledImages
from clapforget.scenarios.experiences import (
    ForgetExperience,
    LearnExperience,
    ProbeExperience,
    Samples,
)
from clapforget.scenarios.requests import Forget, Learn, Request
from clapforget.scenarios.sequence import (
    check_requests,
    forgotten_after,
    learned_in,
    parse_sequence,
    retained_after,
)
from clapforget.seeding import generator_for

__all__ = ["avalanche_dataset", "stream", "unseen_classes"]


def stream(
    data: ImageData,
    requests: Sequence[Request] | str,
    class_order: Sequence[int] | None = None,
    check: bool = True,
    online: int = 0,
    seed: int = 0,
) -> CLScenario:
    """Build the benchmark of a sequence of requests.

    ========================  ==================================================================
    ``train_stream``          one experience a request (``online``: one or more of a Learn request), in
                              order, with the train images: to learn
                              (:class:`LearnExperience`) or to forget (:class:`ForgetExperience`)
    ``test_stream``           one a Learn request: test images of its classes
    ``forget_stream``         one a Forget request: test images of its classes, or of the classes that
                              its samples show, which stand in for never having seen the samples
    ``retain_stream``         one: test images of all that is learned and not forgotten at the end
    ``unseen_stream``         one: test images of :func:`unseen_classes`
    ========================  ==================================================================

    A stream with nothing to show is empty. Avalanche's own strategies run on the Learn experiences
    and on every test stream.

    :param requests: a list of requests, or its text (``"L0-9 L10-19 F3"``).
    :param class_order: reorder the classes first, see :meth:`ImageData.reorder`.
    :param online: learn from experiences of so many samples, each seen once, in a shuffled order; 0: a
        Learn request is one experience.
    :param seed: of that order.
    :param check: whether to look for requests that cannot be carried out.
    :raises UserError: for such a request, or a class in it that has no train or no test image.
    """
    if isinstance(requests, str):
        requests = parse_sequence(requests)
    if class_order is not None:
        data = data.reorder(class_order)
    if check:
        check_requests(requests, data.num_classes, data.known, len(data.train))
    _check_images(data, requests)
    train, test = avalanche_dataset(data.train), avalanche_dataset(data.test)

    def probe(classes: tuple[int, ...]) -> ProbeExperience:
        dataset = test.subset(data.rows("test", classes).tolist())
        return ProbeExperience(dataset=dataset, data=data, classes=classes)

    learn_and_forget = _train_experiences(data, requests, train, online, seed)
    learns = [request.classes for request in requests if isinstance(request, Learn)]
    forgets = [_shown(e) for e in learn_and_forget if isinstance(e, ForgetExperience)]
    retained = retained_after(requests, len(requests) - 1)
    benchmark = with_task_labels(
        with_classes_timeline(
            CLScenario(
                [
                    EagerCLStream("train", learn_and_forget),
                    EagerCLStream("test", [probe(classes) for classes in learns]),
                    EagerCLStream("forget", [probe(classes) for classes in forgets]),
                    EagerCLStream("retain", _one_or_none(probe, retained)),
                    EagerCLStream("unseen", _one_or_none(probe, unseen_classes(data, requests))),
                ]
            )
        )
    )
    for each in benchmark.streams.values():
        each.benchmark = benchmark  # Avalanche's strict checks follow this link
    return benchmark


def unseen_classes(data: ImageData, requests: Iterable[Request]) -> tuple[int, ...]:
    """Labels that neither pretraining nor any request teaches, ascending.

    None, if nothing is known about pretraining: a class that pretraining may have taught must not
    stand in for one that was never seen.
    """
    if data.known is None:
        return ()
    taught = data.known | learned_in(list(requests))
    return tuple(label for label in range(data.num_classes) if label not in taught)


def _train_experiences(
    data: ImageData, requests: Sequence[Request], train: Samples, online: int, seed: int
) -> list[LearnExperience | ForgetExperience]:
    gone = torch.zeros(len(data.train), dtype=torch.bool)
    experiences: list[LearnExperience | ForgetExperience] = []
    for index, request in enumerate(requests):
        learned = retained_after(requests[:index], index)
        if isinstance(request, Learn):
            rows = data.rows("train", request.classes)
            rows = rows[~gone[rows]]
            _check_left(data, request, rows)
        elif request.classes:
            before = forgotten_after(requests[:index], index)
            rows = data.rows("train", [c for c in request.classes if c not in before])
            rows = rows[~gone[rows]]
        else:
            asked = _named_rows(data, request)
            there = torch.isin(data.train.targets[asked], torch.tensor(learned, dtype=torch.long))
            wanted = there if request.samples else torch.ones_like(there)
            rows = asked[~gone[asked] & wanted]  # pairs, pretraining may know; samples it does not
            gone[asked] = True
        kind = LearnExperience if isinstance(request, Learn) else ForgetExperience
        parts = [rows]
        if online and isinstance(request, Learn):
            order = torch.randperm(len(rows), generator=generator_for(seed, 31, index))
            parts = list(rows[order].split(online))
        for part, few in enumerate(parts):
            dataset = train.subset(few.tolist())
            experience = kind(dataset=dataset, data=data, requests=requests, index=index)
            experience.forgotten_samples = tuple(gone.nonzero().flatten().tolist())
            if isinstance(experience, LearnExperience):
                experience.part, experience.parts = part, len(parts)
                experience.promoted = () if part else experience.promoted
            experiences.append(experience)
    return experiences


def _named_rows(data: ImageData, request: Forget) -> Tensor:
    """Rows of the train images that a request names by id or by a phrase of their captions."""
    if request.samples:
        return torch.tensor(sorted(request.samples), dtype=torch.long)
    return data.rows_with_caption("train", request.matches)


def _check_left(data: ImageData, request: Learn, rows: Tensor) -> None:
    left = set(data.train.targets[rows].tolist())
    if bare := [label for label in request.classes if label not in left]:
        raise UserError(
            f"{request.text} has no train image of class {bare[0]} "
            f"({data.class_names[bare[0]]}) left: all were forgotten one by one",
            "leave the class out",
        )


def _shown(experience: ForgetExperience) -> tuple[int, ...]:
    """Classes whose test images show what a request is about: of samples, those of their classes."""
    return experience.classes or tuple(sorted(set(experience.dataset.targets)))


def _one_or_none(
    probe: Callable[[tuple[int, ...]], ProbeExperience], classes: tuple[int, ...]
) -> list[ProbeExperience]:
    return [probe(classes)] if classes else []


def avalanche_dataset(images: LabelledImages, sample_ids: Sequence[int] | None = None) -> Samples:
    """Samples ``(x, y, 0)`` whose ids outlive every subset and concatenation.

    :param sample_ids: an id an image; default: its row.

    The task label must be there: Avalanche's replay and metrics fail on two-tuples.
    """
    length = len(images)
    return Samples(
        [images],
        data_attributes=[
            DataAttribute(images.targets.tolist(), "targets"),
            TaskLabels([0] * length),  # a ConstantSequence fails where it is empty
            DataAttribute(list(range(length) if sample_ids is None else sample_ids), "sample_id"),
        ],
    )


def _check_images(data: ImageData, requests: Sequence[Request]) -> None:
    labels = sorted({label for request in requests for label in request.classes})
    named = torch.tensor(labels, dtype=torch.long)
    data.check_labels(named.tolist(), "the requests")
    for images in (data.train, data.test):
        counts = torch.bincount(images.targets, minlength=data.num_classes)
        bare = named[counts[named] == 0].tolist()
        if bare:
            raise UserError(
                f"class {bare[0]} ({data.class_names[bare[0]]}) of {data.name} has no "
                f"{images.split} image",
                "add some, or leave the class out of the sequence",
            )
