"""Named sequences: one file a sequence, a function under :func:`named_sequence`."""

from clapforget.scenarios.sequences.base import (
    SEQUENCES,
    Material,
    NamedSequence,
    build_sequence,
    named_sequence,
)

__all__ = ["SEQUENCES", "Material", "NamedSequence", "build_sequence", "named_sequence"]
