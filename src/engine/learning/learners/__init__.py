"""Learners behind one protocol; a new one is a file here and a line in ``kinds.py``."""

from engine.learning.learners.kinds import LEARNERS, LIBRARIES, learner
from engine.learning.learners.protocol import FitProgress, Learner, Model

__all__ = ["LEARNERS", "LIBRARIES", "FitProgress", "Learner", "Model", "learner"]
