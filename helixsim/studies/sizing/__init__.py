"""The cheapest machines that meet objectives at a rate.

:mod:`.size` has the entry point and the search. :mod:`.offers` has the machines that may be added,
:mod:`.machine_sets` lists sets of them in the order of their cost, :mod:`.trials` simulates a set,
and :mod:`.sustained` measures what machines of each kind serve by themselves.
"""
