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
from avalanche.benchmarks.utils import ConstantSequence, DataAttribute
from avalanche.benchmarks.utils.data_attribute import TaskLabels

from clapforget.errors import UserError
from clapforget.scenarios.data import ImageData, LabelledImages
from clapforget.scenarios.experiences import (
    ForgetExperience,
    LearnExperience,
    ProbeExperience,
    Samples,
)
from clapforget.scenarios.requests import Learn, Request
from clapforget.scenarios.sequence import (
    check_requests,
    learned_in,
    parse_sequence,
    retained_after,
)

__all__ = ["avalanche_dataset", "stream", "unseen_classes"]


def stream(
    data: ImageData,
    requests: Sequence[Request] | str,
    class_order: Sequence[int] | None = None,
    check: bool = True,
) -> CLScenario:
    """Build the benchmark of a sequence of requests.

    ========================  ==================================================================
    ``train_stream``          one experience a request, in order, with the train images: to learn
                              (:class:`LearnExperience`) or to forget (:class:`ForgetExperience`)
    ``test_stream``           one a Learn request: test images of its classes
    ``forget_stream``         one a Forget request: test images of its classes
    ``retain_stream``         one: test images of all that is learned and not forgotten at the end
    ``unseen_stream``         one: test images of :func:`unseen_classes`
    ========================  ==================================================================

    A stream with nothing to show is empty. Avalanche's own strategies run on the Learn experiences
    and on every test stream.

    :param requests: a list of requests, or its text (``"L0-9 L10-19 F3"``).
    :param class_order: reorder the classes first, see :meth:`ImageData.reorder`.
    :param check: whether to look for requests that cannot be carried out.
    :raises UserError: for such a request, or a class in it that has no train or no test image.
    """
    if isinstance(requests, str):
        requests = parse_sequence(requests)
    if class_order is not None:
        data = data.reorder(class_order)
    if check:
        check_requests(requests, data.num_classes, data.known)
    _check_images(data, requests)
    train, test = avalanche_dataset(data.train), avalanche_dataset(data.test)

    def probe(classes: tuple[int, ...]) -> ProbeExperience:
        dataset = test.subset(data.rows("test", classes).tolist())
        return ProbeExperience(dataset=dataset, data=data, classes=classes)

    learns = [request.classes for request in requests if isinstance(request, Learn)]
    forgets = [request.classes for request in requests if not isinstance(request, Learn)]
    learn_and_forget = [_train_experience(data, requests, i, train) for i in range(len(requests))]
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


def _train_experience(
    data: ImageData, requests: Sequence[Request], index: int, train: Samples
) -> LearnExperience | ForgetExperience:
    request = requests[index]
    dataset = train.subset(data.rows("train", request.classes).tolist())
    kind = LearnExperience if isinstance(request, Learn) else ForgetExperience
    return kind(dataset=dataset, data=data, requests=requests, index=index)


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
            TaskLabels(ConstantSequence(0, length)),
            DataAttribute(list(range(length) if sample_ids is None else sample_ids), "sample_id"),
        ],
    )


def _check_images(data: ImageData, requests: Sequence[Request]) -> None:
    named = torch.tensor(sorted({label for request in requests for label in request.classes}))
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
