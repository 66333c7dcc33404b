"""Learning under a budget: sampling, the training cache, learners, metrics, calibration, gate, drift, retraining."""

from engine.learning.bootstrap import Interval, paired_bootstrap
from engine.learning.cache import CacheWriter, TrainingCache, cache_bytes
from engine.learning.calibration import Calibration, fit_calibration
from engine.learning.drift import DriftCounter, Reference, ReferenceBuilder, psi
from engine.learning.gate import Rule, Verdict, judge
from engine.learning.learners import Learner, Model, learner
from engine.learning.metrics import Metrics, PositiveScores, RankingMetrics, metrics
from engine.learning.retrain import ChampionFacts, Decision, should_retrain
from engine.learning.sampling import correct_prior, keep, row_uniform, sampling_rate_for
from engine.learning.split import Split
from engine.learning.threshold import OperatingPoint, choose_threshold

__all__ = [
    "CacheWriter",
    "Calibration",
    "ChampionFacts",
    "Decision",
    "DriftCounter",
    "Interval",
    "Learner",
    "Metrics",
    "Model",
    "OperatingPoint",
    "PositiveScores",
    "RankingMetrics",
    "Reference",
    "ReferenceBuilder",
    "Rule",
    "Split",
    "TrainingCache",
    "Verdict",
    "cache_bytes",
    "choose_threshold",
    "correct_prior",
    "fit_calibration",
    "judge",
    "keep",
    "learner",
    "metrics",
    "paired_bootstrap",
    "psi",
    "row_uniform",
    "sampling_rate_for",
    "should_retrain",
]
