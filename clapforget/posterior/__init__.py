"""Posteriors over the class weights on top of a frozen CLIP."""

from clapforget.posterior.predictive import Predictive
from clapforget.posterior.variational import ClapSettings, ClassWeights, LogitNoise, VariationalHead

__all__ = ["ClapSettings", "ClassWeights", "LogitNoise", "Predictive", "VariationalHead"]
