"""After a forget request nothing of the forgotten training data is left, in memory or on disk.

Each search is first shown to find what it looks for before the request.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from safetensors.torch import load_file
from torch import Tensor

from clapforget import Clip, load_clip
from clapforget.posterior.exact import ExactSettings
from clapforget.scenarios import ImageData, Scenario, lab, parse_sequence
from clapforget.strategies import ClapForget, UncertaintyBuffer
from clapforget.strategies.runner import Run
from clapforget.unlearn import make_forgetter

LABEL = 1
"""The class to forget, in the second experience of three; it is known from pretraining."""
SEQUENCE = f"L0-3 F{LABEL} L4,5"
# All leave CLIP changed: two the text tower only, the last its image tower as well.
FORGETTERS: dict[str, dict[str, Any]] = {
    "stranger": {},
    "cliperase": {"steps": 30, "vocabulary_batch": 32, "retain_batch": 16},
    "random-edit": {"relative": 0.05},
}


class Traces:
    """The forgotten training data in every form that could be left over."""

    def __init__(self, data: ImageData, rows: Tensor | None = None) -> None:
        """:param rows: of the train images; default: all of the forgotten class."""
        rows = data.rows("train", [LABEL]) if rows is None else rows
        self.ids = set(rows.tolist())
        self.images = data.train.images(rows)
        self.raw = {bytes(image.flatten().numpy()) for image in self.images}
        self.features: list[Tensor] = []

    def add_features(self, clip: Clip) -> None:
        """What this encoder makes of the images, as they are and mirrored."""
        for images in (self.images, self.images.flip(-1)):
            self.features.append(clip.encode_image(images))

    def in_tensor(self, tensor: Tensor) -> str | None:
        """What is found: an image, as bytes or as floats, or a feature; else None."""
        tensor = tensor.detach().cpu()
        if tensor.is_sparse or not tensor.numel() or tensor.dtype == torch.bool:
            return None
        size = self.images[0].numel()
        if tensor.numel() % size == 0 and not tensor.is_complex():
            rows = tensor.reshape(-1, size)
            if not tensor.is_floating_point():
                whole = self.images.flatten(1).to(rows.dtype)
                if any((rows == image).all(1).any() for image in whole):
                    return "image"
            elif any(
                (rows.float() - image.float() / scale).abs().amax(1).min() < 1e-3
                for image in self.images.flatten(1) for scale in (1, 255)
            ):  # fmt: skip
                return "image as floats"
        if tensor.is_floating_point():
            for features in self.features:
                width = features.shape[1]
                if tensor.ndim and tensor.shape[-1] == width:
                    rows = tensor.float().reshape(-1, width)
                    exact = "donot_use_mm_for_euclid_dist"
                    distance = torch.cdist(rows, features, compute_mode=exact)
                    if distance.min() < 1e-6 * width**0.5:
                        return "feature"
        return None


def tensors_of(root: Any, data: ImageData) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that can be reached from an object, with the way to it.

    What shares its memory with the data set itself is left out, and so are modules and classes.
    """
    own = {split._images.untyped_storage().data_ptr() for split in (data.train, data.test)}  # type: ignore[attr-defined]
    seen: set[int] = set()
    keep: list[Any] = []  # so that no id is used twice
    stack: list[tuple[str, Any]] = [("strategy", root)]
    while stack:
        way, value = stack.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, str, bytes, int, float)):
            continue
        seen.add(id(value))
        keep.append(value)
        if isinstance(value, Tensor):
            if value.untyped_storage().data_ptr() not in own:
                yield way, value
            if value.grad is not None and value.is_leaf:
                stack.append((f"{way}.grad", value.grad))
        elif isinstance(value, dict):
            stack += [(f"{way}[{key!r}]", part) for key, part in list(value.items())]
        elif isinstance(value, (list, tuple, set, frozenset)):
            stack += [(f"{way}[{i}]", part) for i, part in enumerate(value)]
        elif isinstance(value, types.MethodType):
            stack.append((f"{way}.__self__", value.__self__))
        elif isinstance(value, types.FunctionType):
            stack += [(f"{way}<closure>", c.cell_contents) for c in value.__closure__ or () if _full(c)]  # fmt: skip
        else:
            stack += [(f"{way}.{name}", part) for name, part in getattr(value, "__dict__", {}).items()]  # fmt: skip
            if hasattr(value, "state") and isinstance(value, torch.optim.Optimizer):
                stack += [(f"{way}.state[{i}]", part) for i, part in enumerate(value.state.values())]  # fmt: skip


def _full(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def found_in_objects(root: Any, data: ImageData, traces: Traces) -> dict[str, str]:
    return {way: what for way, tensor in tensors_of(root, data) if (what := traces.in_tensor(tensor))}  # fmt: skip


def found_in_files(folder: Path, traces: Traces) -> set[str]:
    """What is found in any file of a folder, as raw bytes or in a checkpoint's tensors."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if any(raw in content for raw in traces.raw):
                found.add(f"{path.name}: bytes of an image")
            if any(bytes(f.numpy().tobytes()) in content for fs in traces.features for f in fs):
                found.add(f"{path.name}: bytes of a feature")
            if path.suffix == ".safetensors":
                for name, tensor in load_file(path).items():
                    if what := traces.in_tensor(tensor):
                        found.add(f"{path.name}: {name} holds an {what}")
                    if "sample_ids" in name and traces.ids & set(tensor.tolist()):
                        found.add(f"{path.name}: {name} holds an id")
    return found


def found_ids(strategy: ClapForget, data: ImageData, traces: Traces) -> set[str]:
    """Where the strategy keeps sample ids of forgotten images."""
    found = set()
    for way, tensor in tensors_of(strategy, data):
        if way.endswith("sample_ids") and traces.ids & set(tensor.tolist()):
            found.add(way)
    return found


class Lived:
    """A run in a folder, searched after every experience."""

    def __init__(
        self, folder: Path, forgetter: str, data: ImageData, sequence: str = SEQUENCE,
        rows: Tensor | None = None, **options: Any,
    ) -> None:  # fmt: skip
        base = load_clip("lab-tiny")
        self.strategy = ClapForget(
            base, forgetter=make_forgetter(forgetter, FORGETTERS[forgetter]),
            memory=UncertaintyBuffer(60), evaluator=EvaluationPlugin(), certify="quick", **options,
        )  # fmt: skip
        requests = parse_sequence(sequence)
        scenario = Scenario("lab", "", data, requests, "lab-tiny", None)
        self.folder = folder
        self.run = Run(folder, scenario, self.strategy, base, {"seed": 0})
        self.traces = Traces(data, rows)
        self.objects: list[dict[str, str]] = []
        self.ids: list[set[str]] = []
        self.files: list[set[str]] = []
        encoders: list[Clip] = []

        def look(line: str) -> None:  # Run says a line when an experience is over and saved
            encoders.append(self.strategy.model.clip)
            self.traces.features.clear()
            for encoder in encoders:
                self.traces.add_features(encoder)
            self.objects.append(found_in_objects(self.strategy, data, self.traces))
            self.ids.append(found_ids(self.strategy, data, self.traces))
            self.files.append(found_in_files(folder, self.traces))

        self.run.say = look
        self.run.live()


@pytest.fixture(scope="module")
def data() -> ImageData:
    return lab(train_per_class=20, test_per_class=25)


@pytest.fixture(scope="module", params=list(FORGETTERS))
def lived(
    request: pytest.FixtureRequest, data: ImageData, tmp_path_factory: pytest.TempPathFactory
) -> Lived:
    return Lived(tmp_path_factory.mktemp("run"), request.param, data)


def test_before_the_request_the_searches_find_what_they_look_for(lived: Lived) -> None:
    kinds = set(lived.objects[0].values())
    assert {"image", "feature"} <= kinds
    assert any("memory.images" in way for way in lived.objects[0])
    assert any("head" in way and "context" in way for way in lived.objects[0])
    assert any("._features[" in way for way in lived.objects[0])  # the cache
    assert any("memory.sample_ids" in way for way in lived.ids[0])
    found = " ".join(lived.files[0])
    for what in ("bytes of an image", "memory.images", "memory.sample_ids holds an id",
                 "memory_views", "head.context", "bytes of a feature"):  # fmt: skip
        assert what in found


@pytest.mark.parametrize("event", [1, 2], ids=["after-the-request", "after-later-learning"])
def test_afterwards_the_strategy_holds_no_image_and_no_feature(lived: Lived, event: int) -> None:
    assert lived.objects[event] == {}


@pytest.mark.parametrize("event", [1, 2], ids=["after-the-request", "after-later-learning"])
def test_afterwards_the_strategy_holds_no_sample_id(lived: Lived, event: int) -> None:
    assert lived.ids[event] == set()


@pytest.mark.parametrize("event", [1, 2], ids=["after-the-request", "after-later-learning"])
def test_afterwards_no_file_holds_any_of_it(lived: Lived, event: int) -> None:
    assert lived.files[event] == set()


def test_the_folder_as_a_whole_is_clean_when_the_run_is_over(lived: Lived) -> None:
    assert {"config.yaml", "events.jsonl", "summary.json"} <= {p.name for p in lived.folder.iterdir()}  # fmt: skip
    assert found_in_files(lived.folder, lived.traces) == set()


def test_no_list_in_the_records_holds_the_samples_ids(lived: Lived) -> None:
    """Ids are small numbers: one alone says nothing, a list of ten of them does."""

    def lists(value: Any) -> Iterator[list[Any]]:
        if isinstance(value, dict):
            for part in value.values():
                yield from lists(part)
        elif isinstance(value, list):
            yield value
            for part in value:
                yield from lists(part)

    records = [lived.folder / "summary.json", *(lived.folder / "certificates").glob("*.json")]
    texts = [path.read_text() for path in records]
    texts += (lived.folder / "events.jsonl").read_text().splitlines()
    for text in texts:
        for found in lists(json.loads(text)):
            numbers = {n for n in found if isinstance(n, int)}
            assert len(numbers & lived.traces.ids) < 10


def test_nothing_of_the_retained_classes_is_lost_with_it(lived: Lived) -> None:
    assert set(lived.strategy.memory.classes) == {0, 2, 3, 4, 5}
    assert not torch.isin(lived.strategy.memory.labels, torch.tensor([LABEL])).any()


@pytest.mark.parametrize("posterior", ["variational", "exact"])
def test_deleted_samples_leave_nothing_either(
    posterior: str, data: ImageData, tmp_path: Path
) -> None:
    rows = data.rows("train", [LABEL])[:12]
    head = ExactSettings(features=20) if posterior == "exact" else None
    sequence = f"L0-3 F@{','.join(map(str, rows.tolist()))} L4,5"
    lived = Lived(tmp_path, "stranger", data, sequence, rows, posterior=posterior, head=head)
    assert {"image", "feature"} <= set(lived.objects[0].values())
    assert lived.ids[0] and lived.files[0]
    for event in (1, 2):
        assert lived.objects[event] == {}
        assert lived.ids[event] == set()
        assert lived.files[event] == set()
    assert LABEL in lived.strategy.memory.classes


def test_the_search_looks_into_every_corner_of_an_object(data: ImageData) -> None:
    traces = Traces(data)
    hidden = traces.images[3].clone()

    def closure() -> Tensor:
        return hidden

    class Holder:
        method: Callable[..., Any]

        def __init__(self, value: Any) -> None:
            self.value = value

    for value in (hidden, [hidden], {"a": (hidden,)}, closure, Holder([hidden]), hidden.float() / 255,
                  torch.stack([hidden, hidden + 1])):  # fmt: skip
        assert found_in_objects(Holder(value), data, traces)
    assert not found_in_objects(Holder(data), data, traces)
    assert not found_in_objects(Holder(hidden.add(1)), data, traces)
