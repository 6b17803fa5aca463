"""``clapforget verify``: two checkpoints, whoever made them; and whether a model is the certified one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clapforget import UserError, lab, load_clip
from clapforget.cli import app
from clapforget.clip import Clip
from clapforget.loading import build_clip
from clapforget.pretrain import save_clip
from clapforget.run_verify import VerifyRequest, check_certificate, load_checkpoint, verify_models
from clapforget.seeding import generator_for
from clapforget.verify import schema


def quietly(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in weights in a file that nothing of this package wrote: a plain state dict."""
    path = tmp_path_factory.mktemp("weights") / "open_clip.pt"
    torch.save(load_clip("lab-tiny").model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of known and unseen classes."""
    root = tmp_path_factory.mktemp("images")
    first, *others = [*lab.known_classes()[:40], *lab.unseen_classes()]
    for split, of_first, each in (("train", 3, 2), ("test", 22, 4)):
        index = [first + 100 * i for i in range(of_first)]
        index += [c + 100 * i for c in others for i in range(each)]
        for place, image in zip(index, lab.draw(split, index)):
            folder = root / split / lab.class_names()[place % 100]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{place // 100}.png")
    return root


@pytest.fixture(scope="module")
def certified(checkpoint: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of a model that did nothing, by class folders and a plain state dict."""
    names = lab.class_names()
    out = tmp_path_factory.mktemp("certificates") / "c.json"
    request = VerifyRequest(
        before="lab-tiny", after=str(checkpoint), request=names[0], data=str(images), model="lab-tiny",
        unseen=",".join(names[c] for c in lab.unseen_classes()), level="quick",
    )  # fmt: skip
    verify_models(request, quietly).save(out)
    return out


def test_two_files_and_class_folders_end_in_a_certificate(certified: Path) -> None:
    values = json.loads(certified.read_text())
    jsonschema.validate(values, schema())
    assert values["verdict"] == "retained"
    assert values["request"]["names"] == [lab.class_names()[0]]
    assert values["reference"] == "unseen classes"
    assert values["weights"]["before"] == values["weights"]["after"]


def test_the_certified_model_is_known_again_and_no_other(
    certified: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert check_certificate(certified, str(checkpoint), "lab-tiny")
    other = tmp_path / "other.safetensors"
    save_clip(build_clip("lab-tiny", seed=1), other, half=False)
    assert not check_certificate(certified, str(other), None)


def test_check_ends_with_one_where_it_is_another_model(certified: Path, checkpoint: Path) -> None:
    arguments = ["verify", "--check", str(certified), "--model", "lab-tiny", "--after"]
    same = CliRunner().invoke(app, [*arguments, str(checkpoint)])
    assert same.exit_code == 0
    assert "is the model" in same.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"level": "deep"}, "unknown level"), ({"claim": "all"}, "unknown claim"),
        ({"data": "/nowhere"}, "no train/"), ({"request": "nobody"}, "no class"),
        ({"request": "L3"}, "no class|no request"), ({"after": "/no/file.pt", "model": "lab-tiny"}, "does not exist"),
        ({"seed": -1}, "seed is -1"), ({"after": "/no/file.pt"}, "of which architecture"),
        ({"unseen": "F6"}, "to be forgotten and in --unseen"),
        ({"twin": "lab-tiny"}, "gives the features that --after gives"),
        ({"request": "F0-99"}, "no test image of a class to be kept"),
        ({"unseen": "F0-5,7-99"}, "no test image of a class to be kept"),
    ],
)  # fmt: skip
def test_mistakes_are_told(changes: dict[str, Any], words: str) -> None:
    request = {
        "before": "lab-tiny",
        "after": "lab-tiny",
        "request": "F6",
        "data": "lab",
        "level": "quick",
    }
    with pytest.raises(UserError, match=words):
        verify_models(VerifyRequest(**{**request, **changes}), quietly)  # type: ignore[arg-type]


def saved(clip: Clip, path: Path) -> str:
    save_clip(clip, path, half=False)
    return str(path)


def test_a_twin_was_trained_apart_or_is_refused(tmp_path: Path) -> None:
    """Not the model after itself, nor, where knowledge is claimed, one with its image tower."""
    after, other, apart, knows = (load_clip("lab-tiny").trainable_copy([]) for _ in range(4))
    with torch.no_grad():
        for seed, clip in enumerate((after, other, apart)):  # names that mean nothing
            table = clip.token_table.weight
            table.copy_(table.std() * torch.randn(table.shape, generator=generator_for(seed, 1)))
        for clip, much in ((apart, 0.3), (knows, 0.1)):
            for parameter in clip.model.visual.parameters():
                noise = torch.randn(parameter.shape, generator=generator_for(0, 0))
                parameter.add_(much * parameter.std() * noise)
    last = saved(after, tmp_path / "after.safetensors")
    asked = VerifyRequest("lab-tiny", last, "F6", "lab", level="quick")
    with pytest.raises(UserError, match="gives the features that --after gives"):
        verify_models(replace(asked, twin=last), quietly)
    tower = saved(other, tmp_path / "tower.safetensors")
    with pytest.raises(UserError, match="an image tower that gives the features"):
        verify_models(replace(asked, twin=tower), quietly)
    with pytest.raises(UserError, match="does not stand for a model that never learned"):
        verify_models(replace(asked, twin=saved(knows, tmp_path / "knows.safetensors")), quietly)
    for claim, twin in (
        ("association", tower),
        ("knowledge", saved(apart, tmp_path / "apart.safetensors")),
    ):
        verify_models(replace(asked, twin=twin, claim=claim), quietly)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "part", ["token_embedding.weight", "logit_scale", "visual.bn1.running_mean"]
)
def test_a_model_that_is_not_finite_is_told_in_a_line(part: str, tmp_path: Path) -> None:
    broken = load_clip("lab-tiny").trainable_copy([])
    with torch.no_grad():
        broken.model.state_dict()[part].view(-1)[:1] = float("nan")
    path = saved(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=f"--after: {part}"):
        verify_models(VerifyRequest("lab-tiny", path, "F6", "lab", level="quick"), quietly)


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    for text in ("", "{}", "[1]"):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(UserError):
            check_certificate(path, "lab-tiny", None)


def test_checkpoints_by_name_by_tag_and_by_file(checkpoint: Path) -> None:
    assert load_checkpoint("lab-tiny", None).pretrained == "built-in"
    assert load_checkpoint(str(checkpoint), "lab-tiny").pretrained == str(checkpoint)
    with pytest.raises(UserError, match="no pretrained tag"):
        load_checkpoint("ViT-B-32:nonsense", None)
