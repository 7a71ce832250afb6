"""Calibration: fits the costs of an engine to recorded runs of real clusters."""

from __future__ import annotations

from helixsim.calibration.fit import Calibration, CalibrationSettings, calibrate

__all__ = ["Calibration", "CalibrationSettings", "calibrate"]
