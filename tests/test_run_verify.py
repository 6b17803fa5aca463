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
from clapforget.run_verify import (
    VerifyRequest,
    _part,
    check_certificate,
    load_checkpoint,
    verify_models,
)
from clapforget.scenarios import lab as lab_data
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
    titles = {piece["name"]: piece["title"] for piece in values["evidence"]}
    assert "(nearest names)" in titles["clip_neighbours_accuracy"], "folders say nothing of neighbours"


def test_other_words_and_single_images_are_asked_about_where_they_are_given(
    images: Path, tmp_path: Path
) -> None:
    """By the command line: a file of synonyms; and train images that the model before was trained on."""
    name, words, out = lab.class_names()[0], tmp_path / "words.yaml", tmp_path / "c.json"
    words.write_text(f"{name}: [tulip]\n")
    twin = saved(build_clip("lab-tiny", seed=1), tmp_path / "twin.safetensors")
    arguments = [
        "verify", "--before", "lab-tiny", "--after", "lab-tiny", "--request", name, "--data", str(images),
        "--unseen", ",".join(lab.class_names()[c] for c in lab.unseen_classes()), "--level", "quick", "--out", str(out),
    ]  # fmt: skip

    def found(*more: str) -> tuple[set[str], str]:
        result = CliRunner().invoke(app, [*arguments, *more, "--overwrite"])
        assert result.exit_code == 0, result.output
        values = json.loads(out.read_text())
        jsonschema.validate(values, schema())
        return {piece["name"] for piece in values["evidence"]}, " ".join(values["not_tested"])

    names, left = found()
    assert "synonyms" not in names and "other words for the same thing" in left
    names, left = found("--synonyms", str(words), "--members", "--twin", twin)
    assert {"synonyms", "rmia_auroc"} <= names
    assert "other words" not in left and "membership" not in left


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
    assert "head" not in same.output


SHA = "0" * 64


@pytest.mark.parametrize(
    "after",
    [{}, {"text": SHA}, {"image": SHA, "text": SHA}, {"image": SHA, "text": SHA, "all": "0"},
     {"image": SHA, "text": SHA, "all": 7}, None, [1]],
)  # fmt: skip
def test_a_certificate_that_does_not_say_whose_it_is_is_refused(
    certified: Path, after: Any, tmp_path: Path
) -> None:
    """An empty or partial set of hashes holds of every model."""
    values = json.loads(certified.read_text())
    values["weights"] = {"before": {}} if after is None else {"before": {}, "after": after}
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    found = CliRunner().invoke(app, ["verify", "--check", str(path), "--after", "lab-tiny"])
    assert isinstance(found.exception, UserError)
    assert "no SHA-256 of weights.after." in str(found.exception)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema())


def test_a_head_that_is_not_checked_is_told(certified: Path, tmp_path: Path) -> None:
    values = json.loads(certified.read_text())
    values["weights"]["after"]["head"] = SHA
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    found = CliRunner().invoke(app, ["verify", "--check", str(path), "--after", "lab-tiny"])
    assert found.exit_code == 0
    assert "the head that it names as well is not checked" in " ".join(found.output.split())


def test_names_are_told_from_a_folder_and_a_file_however_many(tmp_path: Path) -> None:
    data = lab_data(train_per_class=1, test_per_class=1)
    names = list(data.class_names)[5:]
    text = ",".join(names)
    assert len(text.encode()) > 255
    (tmp_path / "names.txt").write_text("\n".join(names))
    for name in names:
        (tmp_path / "shown" / "test" / name).mkdir(parents=True)
    for given in (text, str(tmp_path / "names.txt"), str(tmp_path / "shown")):
        assert sorted(_part(given, data)) == list(range(5, data.num_classes))
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="file of class names"):
        _part(str(tmp_path / "names.txt"), data)
    for long in ("x" * 300, "x" * 5000, "x\0y"):
        with pytest.raises(UserError):
            _part(long, data)
        with pytest.raises(UserError):
            load_checkpoint(long, None)


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
        ({"members": True}, "--members needs a twin"),
        ({"synonyms": Path("/no/words.yaml")}, "cannot be read as synonyms"),
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
    path = tmp_path / "x.json"
    start = '{"format": "clapforget certificate 1", "evidence": '
    for text in ("", "{}", "[1]", '"text"', "7", "{", "[" * 100_000, start + "5}", start + '["x"]}', start + "[]}"):
        path.write_text(text)
        with pytest.raises(UserError):
            check_certificate(path, "lab-tiny", None)
    path.write_bytes(b"\xff\xfe")
    for odd in (path, tmp_path, tmp_path / "none.json", Path("x" * 300)):
        with pytest.raises(UserError):
            check_certificate(odd, "lab-tiny", None)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room
    with pytest.raises(UserError, match="larger than any certificate"):
        check_certificate(path, "lab-tiny", None)


def test_checkpoints_by_name_by_tag_and_by_file(checkpoint: Path) -> None:
    assert load_checkpoint("lab-tiny", None).pretrained == "built-in"
    assert load_checkpoint(str(checkpoint), "lab-tiny").pretrained == str(checkpoint)
    with pytest.raises(UserError, match="no pretrained tag"):
        load_checkpoint("ViT-B-32:nonsense", None)


def edited(kind: str, path: Path) -> str:
    """The built-in model with whole weights that make nothing of images or of names."""
    broken = load_clip("lab-tiny").trainable_copy([])
    with torch.no_grad():
        for name, value in broken.model.state_dict().items():
            image = name.startswith("visual.")
            if kind == "image projection of zeros" and name.startswith("visual.attnpool.c_proj"):
                value.zero_()
            elif kind == "image tower overflows" and image and value.ndim > 1:
                value.mul_(1e12)
            elif kind == "text tower overflows" and not image and value.ndim > 1:
                value.mul_(1e30)
            elif kind == "temperature" and name == "logit_scale":
                value.fill_(1e4)
    return saved(broken, path)


BROKEN = ["image projection of zeros", "image tower overflows", "text tower overflows"]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_model_that_makes_nothing_of_anything_is_damaged(
    kind: str, images: Path, tmp_path: Path
) -> None:
    names, out = lab.class_names(), tmp_path / "c.json"
    unseen = ",".join(names[c] for c in lab.unseen_classes())
    found = CliRunner().invoke(app, [
        "verify", "--before", "lab-tiny", "--after", edited(kind, tmp_path / "after.safetensors"),
        "--request", names[0], "--data", str(images), "--unseen", unseen, "--level", "quick", "--out", str(out),
    ])  # fmt: skip
    assert found.exit_code == 0, found.output
    values = json.loads(out.read_text())
    jsonschema.validate(values, schema())
    assert values["verdict"] == "damaged"


@pytest.mark.parametrize("option", ["before", "twin"])
def test_what_is_held_against_must_encode_images(option: str, images: Path, tmp_path: Path) -> None:
    path = edited("image tower overflows", tmp_path / "broken.safetensors")
    asked = VerifyRequest("lab-tiny", "lab-tiny", lab.class_names()[0], str(images), level="quick")
    with pytest.raises(UserError, match=f"--{option}: .* have no features"):
        verify_models(replace(asked, **{option: path}), quietly)


def test_a_temperature_that_is_none_is_told_in_a_line(tmp_path: Path) -> None:
    path = edited("temperature", tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"--after: exp\(logit_scale\)"):
        verify_models(VerifyRequest("lab-tiny", path, "F6", "lab", level="quick"), quietly)
