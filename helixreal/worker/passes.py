"""Passes in messages, and the sequences that a worker keeps of them."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from helixreal.engines.engine import GREEDY, Sampling
from helixreal.net import messages
from helixreal.net.messages import Frame
from helixreal.worker.looping_executor import FirstSequence, LaterSequence
from helixreal.worker.sequences import SequenceState, StreamedChunk


def check_route(each: messages.Pass, entry_layer: int, assignment: messages.Assignment) -> None:
    """Check that the route of a pass fits the node.

    Raises
    ------
    ValueError
        If it does not.
    """
    assert each.route is not None
    here = each.route[0] if each.route else None
    if here is None or (here.node, here.start_layer) != (assignment.node, entry_layer):
        raise ValueError("the route does not begin at this node")
    if here.end_layer != assignment.end_layer:
        raise ValueError("the route leaves before the node's last layer")
    if (len(each.route) == 1) != (here.end_layer == assignment.llm.num_layers):
        raise ValueError("the route does not end at the last layer")


def new_sequence(each: messages.Pass, entry_layer: int, *, loops: bool) -> SequenceState:
    """The sequence of a request whose first pass arrives at a node.

    Raises
    ------
    ValueError
        If the sampling needs the tokens so far, and they are not in the pass.
    """
    assert each.route is not None
    sampling = sampling_of(each)
    if len(each.context) % 4 or (sampling.needs_context and not each.context):
        raise ValueError("the tokens for the sampling are missing")
    kind = LaterSequence if loops else SequenceState
    sequence = kind(each.key, entry_layer, each.route[0].end_layer, each.route[1:], sampling)
    sequence.first = each.first
    if each.context:
        sequence.context = array("i", struct.unpack(f"<{len(each.context) // 4}i", each.context))
    return sequence


def first_sequence(each: messages.Pass, tokens: array[int]) -> FirstSequence:
    """The sequence of a whole request, on the first node of its route."""
    assert each.route is not None
    assert each.answer is not None
    return FirstSequence(each.key, tokens, each.answer, each.route, sampling_of(each))


def sampling_of(each: messages.Pass) -> Sampling:
    """How the tokens of a request are sampled."""
    return each.sampling_params or GREEDY


def pass_of(sequence: SequenceState) -> messages.Pass:
    """The pass of a sequence for the next node; a prefill carries its route."""
    prefill = sequence.is_prefill
    sampling = sequence.sampling
    return messages.Pass(
        sequence.key,
        sequence.num_computed_tokens,
        sequence.num_new_tokens,
        prefill,
        sequence.wants_token,
        list(sequence.next_stages) if prefill else None,
        sampling if prefill and sampling is not GREEDY else None,
        sequence.first,
        sequence.is_last_pass,
        is_streamed=isinstance(sequence, StreamedChunk),
        context=sequence.whole.take_context() if prefill else b"",
    )


def token_lists(frames: Sequence[Frame], num_tokens: Sequence[int]) -> list[array[int]]:
    """Token ids of passes, from one frame of int32.

    Raises
    ------
    ValueError
        If the size of the frame does not match the number of tokens.
    """
    if len(frames) != 1 or len(frames[0]) != 4 * sum(num_tokens):
        raise ValueError("the frame of token ids has a wrong size")
    ids = array("i", struct.unpack(f"<{sum(num_tokens)}i", frames[0]))
    lists = []
    at = 0
    for tokens in num_tokens:
        lists.append(ids[at : at + tokens])
        at += tokens
    return lists
