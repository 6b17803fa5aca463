"""Streams of requests to learn and to forget, as Avalanche benchmarks, and the data they are about.

To add a named scenario is to add a module with a loader under the decorator
:func:`clapforget.scenarios.registry.scenario`.
"""

from clapforget.scenarios.captions_data import captioned
from clapforget.scenarios.cifar100_data import cifar100
from clapforget.scenarios.data import ImageData, LabelledImages, TensorImages
from clapforget.scenarios.experiences import ForgetExperience, LearnExperience, ProbeExperience
from clapforget.scenarios.files import FileImages
from clapforget.scenarios.folder_data import folder
from clapforget.scenarios.interleave import stream, unseen_classes
from clapforget.scenarios.lab_data import lab
from clapforget.scenarios.registry import SCENARIOS, Scenario, ScenarioSpec, build_scenario
from clapforget.scenarios.requests import Forget, Learn, LearnForNow, Request
from clapforget.scenarios.sequence import (
    check_requests,
    forgotten_after,
    format_sequence,
    parse_sequence,
    retained_after,
)
from clapforget.scenarios.synonyms import read_synonyms

__all__ = [
    "SCENARIOS",
    "FileImages",
    "Forget",
    "ForgetExperience",
    "ImageData",
    "LabelledImages",
    "Learn",
    "LearnExperience",
    "LearnForNow",
    "ProbeExperience",
    "Request",
    "Scenario",
    "ScenarioSpec",
    "TensorImages",
    "build_scenario",
    "captioned",
    "check_requests",
    "cifar100",
    "folder",
    "forgotten_after",
    "format_sequence",
    "lab",
    "parse_sequence",
    "read_synonyms",
    "retained_after",
    "stream",
    "unseen_classes",
]
