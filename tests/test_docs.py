"""What the pages show in Python runs as it stands, on less data."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from clapforget import Clip, lab
from clapforget.verify import VERDICTS

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


def run(code: str, **given: Any) -> tuple[dict[str, Any], Any]:
    """What the code leaves behind, and the value of its last line if that is an expression."""
    *body, last = ast.parse(code).body
    if isinstance(last, ast.Expr):
        exec(compile(ast.Module(body, []), "page", "exec"), given)
        return given, eval(compile(ast.Expression(last.value), "page", "eval"), given)
    exec(compile(code, "page", "exec"), given)
    return given, None


@pytest.fixture
def pairs() -> dict[str, Any]:
    """Ten images of one class to forget, some of nine others to keep."""
    known = sorted(lab.known_classes())[:10]
    index = torch.tensor([c + 100 * i for c in known for i in range(10)])
    images, names = lab.draw("train", index.numpy()), [lab.class_names()[c] for c in known]
    called = [name for name in names for _ in range(10)]
    return {
        "forget_images": images[:10], "forget_names": called[:10],
        "retain_images": images[10:], "retain_names": called[10:],
        "all_names": list(lab.class_names()), "torch": torch,
    }  # fmt: skip


def test_every_page_is_known_here() -> None:
    shown = {
        str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md") if "```python" in p.read_text()
    }
    assert shown == {"docs/requests.md"} and len(blocks("README.md")) == 2


def test_the_first_page_learns_forgets_and_certifies() -> None:
    code = blocks("README.md")[0]
    assert "lab()" in code
    small = code.replace("lab()", "lab(12, 25)")
    _, verdict = run(small.replace("forgetter=", 'certify="quick", forgetter='))
    assert verdict in VERDICTS


def test_the_first_page_forgets_alone(lab_clip: Clip, pairs: dict[str, Any]) -> None:
    code, loaded = re.subn(r"load_clip\(.*\)", 'load_clip("lab-tiny")', blocks("README.md")[1])
    assert loaded == 1
    left, _ = run(code, **pairs)
    assert left["forgotten"].fingerprint() != lab_clip.fingerprint()


def test_avalanches_own_strategy_forgets(pairs: dict[str, Any]) -> None:
    code = blocks("docs/requests.md")[0]
    assert "lab()" in code
    left, _ = run(code.replace("lab()", "lab(12, 5)"))
    assert 3 not in left["replay"].storage_policy.classes
    assert set(left["replay"].storage_policy.classes) == set(range(20)) - {3}


def test_any_open_clip_model_forgets_in_five_lines(
    lab_clip: Clip, pairs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("docs/requests.md")[1]
    own = lab_clip.trainable_copy([])
    left, _ = run(
        code.replace('"cliperase"', '"stranger"'), model=own.model, tokenizer=own.tokenizer, **pairs
    )
    assert len([line for line in code.splitlines() if line and "import" not in line]) == 5
    saved = torch.load("forgotten.pt", weights_only=True)
    assert saved.keys() == left["result"].clip.model.state_dict().keys()
