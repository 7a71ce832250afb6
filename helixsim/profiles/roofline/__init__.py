"""Times of an LLM's operators from the data sheet of a GPU.

Each operator takes the longer of its computation and its memory traffic, at a share of the peaks
that GPUs of its generation reach, and a fixed cost.
"""
