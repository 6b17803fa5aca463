from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clapforget.errors import UserError
from clapforget.registry import Registry

MODULE = """
from clapforget_test_parts import TABLE
@TABLE.register({name!r})
class Part: ...
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry over a package of two modules, found by nothing but being there."""
    package = tmp_path / "clapforget_test_parts"
    package.mkdir()
    package.joinpath("__init__.py").write_text(
        "from clapforget.registry import Registry\n"
        "TABLE = Registry('part', 'clapforget_test_parts')\n"
    )
    for name in ("pear", "apple"):
        package.joinpath(f"{name}.py").write_text(MODULE.format(name=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.startswith("clapforget_test_parts")]:
        monkeypatch.delitem(sys.modules, name)
    import clapforget_test_parts

    return clapforget_test_parts.TABLE


def test_every_module_of_the_package_is_found(table: Registry) -> None:
    assert table.names() == ["apple", "pear"]
    assert table.get("apple").__name__ == "Part"
    assert table.get("apple") is not table.get("pear")


def test_an_unknown_name_is_answered_with_the_nearest(table: Registry) -> None:
    with pytest.raises(UserError, match=r"unknown part 'aple'; did you mean apple\?"):
        table.get("aple")


def test_a_name_like_no_other_is_answered_with_all(table: Registry) -> None:
    with pytest.raises(UserError, match="choose one of: apple, pear"):
        table.get("xyz")


def test_two_parts_of_one_name_are_refused_and_the_first_stays(table: Registry) -> None:
    first = table.get("pear")
    with pytest.raises(ValueError, match="pear"):
        table.register("pear")(object())
    assert table.get("pear") is first
    table.register("pear")(first)  # the same part again is no clash


def test_a_user_error_is_one_line_and_a_value_error() -> None:
    error = UserError("what is\n wrong", "do\tthis")
    assert str(error) == "what is wrong; do this"
    assert str(UserError("alone")) == "alone"
    assert isinstance(error, ValueError)
