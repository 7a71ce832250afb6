"""Pictures: placements and what they do, and fronts of planning candidates.

What is to be seen is collected in plain values first (:mod:`~helixsim.drawing.picture`), then drawn
with matplotlib (:mod:`~helixsim.drawing.placement_figure`, :mod:`~helixsim.drawing.front`), then
written whole (:mod:`~helixsim.drawing.save`).
"""
