"""Pictures of placements with their flow, and of the Pareto front of planning candidates.

The contents of a picture are collected as plain values (:mod:`~helixsim.drawing.picture`), drawn
with matplotlib (:mod:`~helixsim.drawing.placement_figure`, :mod:`~helixsim.drawing.front`) and
written (:mod:`~helixsim.drawing.save`).
"""
