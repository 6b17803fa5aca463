from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clapforget import lab
from clapforget.clip import Clip
from clapforget.errors import UserError
from clapforget.loading import (
    BUILT_IN,
    TRAINABLE,
    build_clip,
    load_clip,
    read_metadata,
    shipped_card,
)
from clapforget.pretrain import save_clip


def state(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in clip.model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


# ---- the built-in models -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lab-tiny", "cifar100-tiny"])
def test_a_built_in_model_loads_and_has_a_card(name: str) -> None:
    assert name in BUILT_IN
    clip = load_clip(name)
    assert (clip.name, clip.pretrained) == (name, "built-in")
    assert clip.encode_image(lab.draw("test", [0])).shape == (1, clip.width)
    card = shipped_card(name)
    assert card["architecture"] == name and card["command"].startswith("clapforget pretrain")
    assert card["seconds"] > 0 and card["zero_shot_known"] > 0.3
    assert len(card["zero_shot_by_class"]) == 100


def test_the_lab_model_knows_its_classes_and_no_others(lab_clip: Clip) -> None:
    index = range(1000)
    truth = torch.arange(1000) % 100
    names = lab_clip.class_features(lab.class_names(), lab.TEMPLATES)
    right = (lab_clip.encode_image(lab.draw("test", index)) @ names.T).argmax(1) == truth
    by_class = right.view(10, 100).float().mean(0)
    assert by_class[list(lab.known_classes())].mean() > 0.95
    assert by_class[list(lab.new_classes() + lab.unseen_classes())].mean() < 0.05
    card = shipped_card("lab-tiny")
    assert card["excluded"] == []
    assert card["classes"] == [lab.class_names()[c] for c in lab.known_classes()]
    assert card["zero_shot_known"] == pytest.approx(
        by_class[list(lab.known_classes())].mean().item(), abs=0.02
    )


def test_an_architecture_without_weights_is_built_and_says_how_to_train_it() -> None:
    assert "lab-vit" in TRAINABLE and not set(TRAINABLE) & set(BUILT_IN)
    clip = build_clip("lab-vit", seed=0)
    assert hasattr(clip.model.visual, "transformer")  # tokens, which MaPLe needs
    assert clip.encode_image(lab.draw("test", [0])).shape == (1, clip.width)
    with pytest.raises(UserError, match="pretrain lab --model lab-vit"):
        load_clip("lab-vit")


# ---- files ---------------------------------------------------------------------------------
@pytest.mark.parametrize("half", [True, False])
def test_a_saved_model_comes_back_by_its_path(random_clip: Clip, tmp_path: Path, half) -> None:
    path = tmp_path / "model.safetensors"
    save_clip(random_clip, path, {"seed": "3"}, half=half)
    assert read_metadata(path) == {"architecture": "lab-tiny", "seed": "3"}
    by_path, by_name = load_clip(str(path)), load_clip("lab-tiny", str(path))
    assert by_path.fingerprint() == by_name.fingerprint()
    assert by_path.dtype == torch.float32
    if half:
        for name, value in by_path.model.state_dict().items():
            torch.testing.assert_close(
                value, random_clip.model.state_dict()[name], atol=1e-4, rtol=1e-3
            )
        again = tmp_path / "again.safetensors"
        save_clip(by_path, again)
        assert load_clip(str(again)).fingerprint() == by_path.fingerprint()
    else:
        assert by_path.fingerprint() == random_clip.fingerprint()


def test_a_plain_torch_state_dict_loads(random_clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(random_clip.model.state_dict(), path)
    assert load_clip("lab-tiny", str(path)).fingerprint() == random_clip.fingerprint()


def complaint(name: str, pretrained: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_clip(name, pretrained)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message, "no word on what to do"
    return message


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    assert "did you mean" in complaint("lab-tinny") and "lab-tiny" in complaint("lab-tinny")
    assert "ViT-B-32" in complaint("VitB32")
    assert "lab-tiny" in complaint("qqqqqq")
    with pytest.raises(UserError, match="unknown model"):
        build_clip("nothing-like-it")


def test_an_unknown_tag_is_answered_with_the_known_ones() -> None:
    message = complaint("ViT-B-32", "laion999")
    assert "laion999" in message and "laion2b_s34b_b79k" in message
    assert "none" in complaint("lab-tiny", "openai")
    assert "openai" in complaint("ViT-B-32")  # no tag at all


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"nowhere{suffix}"
    assert str(path) in complaint("lab-tiny", str(path))
    if suffix == ".safetensors":
        assert str(path) in complaint(str(path))


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_a_truncated_file_is_named(random_clip: Clip, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_clip(random_clip, path)
    path.write_bytes(path.read_bytes()[:kept])
    for message in (complaint(str(path)), complaint("lab-tiny", str(path))):
        assert str(path) in message and "truncated" in message


def test_a_truncated_torch_file_is_named(random_clip: Clip, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(random_clip.model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:50_000])
    assert str(path) in complaint("lab-tiny", str(path))


def test_weights_of_another_architecture_are_refused(random_clip: Clip, tmp_path: Path) -> None:
    marked, bare = tmp_path / "marked.safetensors", tmp_path / "bare.safetensors"
    save_clip(random_clip, marked)
    save_file(load_file(marked), bare)  # the same weights, but nothing says what they are of
    assert "is of model lab-tiny, not cifar100-tiny" in complaint("cifar100-tiny", str(marked))
    assert str(bare) in complaint("cifar100-tiny", str(bare))
    assert "architecture" in complaint(str(bare))
    assert load_clip("lab-tiny", str(bare)).name == "lab-tiny"


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, "text", {"a": torch.ones(2)}])
def test_a_torch_file_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    assert str(path) in complaint("lab-tiny", str(path))


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["torch", "torch-legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".safetensors"])
def test_no_code_in_a_weights_file_is_run(tmp_path: Path, how: str, suffix: str) -> None:
    target, path = tmp_path / "harm", tmp_path / f"weights{suffix}"
    content = {"logit_scale": torch.ones(()), "visual": Payload(target)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    assert str(path) in complaint("lab-tiny", str(path))
    assert not target.exists()
    if how == "pickle":  # the payload is a live one
        pickle.loads(path.read_bytes())
        assert target.exists()


SCRIPT = """
import sys
from clapforget.loading import load_clip
from clapforget.errors import UserError
try:
    load_clip(*sys.argv[1:])
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("ViT-B-32", "laion400m_e32"), "ViT-B-32"),
     (("hf-hub:nobody/nothing",), "nobody/nothing")],
)  # fmt: skip
def test_without_a_network_the_error_says_soon_what_to_fetch(tmp_path, arguments, named) -> None:
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    nowhere |= {name.upper(): value for name, value in nowhere.items()}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_")
    } | nowhere | {"HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}  # fmt: skip
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], env=environment, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert run.stdout.count("\n") == 1
    assert named in run.stdout and "cannot download" in run.stdout
    assert time.monotonic() - began < 20 + 10  # of which some are imports
