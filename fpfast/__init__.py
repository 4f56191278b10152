"""Trains and samples score-based diffusion models, and measures what their ODE and SDE do, in fused kernels."""

from fpfast import data, fused, losses, model, noise, train
from fpfast.certificate import certificate
from fpfast.divergence import ESTIMATORS, divergence
from fpfast.gap import gap
from fpfast.likelihood import bits_per_dimension, dequantise, log_likelihood
from fpfast.mixture import GaussianMixture
from fpfast.residual import fp_residual
from fpfast.sample import Info, sample
from fpfast.score import Score
from fpfast.sde import EDM, OU, VE, VP, Flow, SubVP
from fpfast.shards import sample_to_folder
from fpfast.solvers import SOLVERS
from fpfast.times import TIMES

__version__ = "0.1.0"
__all__ = [
    "EDM",
    "ESTIMATORS",
    "OU",
    "SOLVERS",
    "TIMES",
    "VE",
    "VP",
    "Flow",
    "GaussianMixture",
    "Info",
    "Score",
    "SubVP",
    "bits_per_dimension",
    "certificate",
    "data",
    "dequantise",
    "divergence",
    "fp_residual",
    "fused",
    "gap",
    "log_likelihood",
    "losses",
    "model",
    "noise",
    "sample",
    "sample_to_folder",
    "train",
]
