"""How a stream is lived through, in Avalanche's terms."""

from clapforget.strategies.buffer import UncertaintyBuffer
from clapforget.strategies.clap_forget import ClapForget
from clapforget.strategies.classifier import ClipClassifier
from clapforget.strategies.forgetting_plugin import ForgettingPlugin
from clapforget.strategies.metrics import (
    ForgetAccuracy,
    RetainAccuracy,
    clap_metrics,
    unlearning_metrics,
)
from clapforget.strategies.template import UnlearningPlugin, UnlearningTemplate
from clapforget.strategies.training import TrainSettings

__all__ = [
    "ClapForget",
    "ClipClassifier",
    "ForgetAccuracy",
    "ForgettingPlugin",
    "RetainAccuracy",
    "TrainSettings",
    "UncertaintyBuffer",
    "UnlearningPlugin",
    "UnlearningTemplate",
    "clap_metrics",
    "unlearning_metrics",
]
