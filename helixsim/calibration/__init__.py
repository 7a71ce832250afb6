"""Fit the costs of a serving engine to recorded runs of real clusters."""

from __future__ import annotations

from helixsim.calibration.calibrate import calibrate
from helixsim.calibration.fit import CalibrationResult, CalibrationSettings, fit_engine

__all__ = ["CalibrationResult", "CalibrationSettings", "calibrate", "fit_engine"]
