"""Other words for classes, from a file that a person writes."""

from __future__ import annotations

from pathlib import Path

import yaml

from clapforget.errors import UserError
from clapforget.scenarios.data import ImageData

__all__ = ["SYNONYMS_FILE", "read_synonyms"]

SYNONYMS_FILE = "synonyms.yaml"
"""Read from beside ``train/`` and ``test/`` where it is there."""
_LARGEST = 2**20


def read_synonyms(path: Path, data: ImageData) -> dict[int, tuple[str, ...]]:
    """Words by label from YAML: ``couch: [sofa, settee]``, a class a line.

    :raises UserError: for a file that cannot be read, of another form, or with a name that is no class; for a
        word that is another class's name, or stands for two classes.
    """
    how = "write a class a line: couch: [sofa, settee]"
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{path} is larger than any list of words", how)
        found = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as synonyms ({reason})", how) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no classes with their words", how)
    words: dict[int, tuple[str, ...]] = {}
    for name, said in found.items():
        given = [said] if isinstance(said, str) else said
        if not isinstance(name, str) or not isinstance(given, list) or not all(
            isinstance(word, str) and word.strip() for word in given
        ):  # fmt: skip
            raise UserError(f"{path}: {name!r} has no list of words", how)
        words[data.label_of(name)] = tuple(dict.fromkeys(word.strip() for word in given))
    meant = {name.casefold(): name for name in data.class_names}
    for label, own in words.items():
        for word in own:
            if word.casefold() in meant:
                raise UserError(
                    f"{path}: {word!r} for {data.class_names[label]!r} is {meant[word.casefold()]!r} too",
                    "give words that mean one class",
                )
            meant[word.casefold()] = data.class_names[label]
    return words
