"""Requests that share much, and a model whose hidden states are hashes of all that a token sees.

Two texts have the same symbolic state only where token, position and everything seen before are the same, so that a
column of another prefix, of padding or of a sister branch shows, whatever the weights of a real model would hide.
"""

import itertools

from hypothesis import strategies as st

from jaxift.scoring.requests import TokenRequest

EMPTY = hash(("empty column",))
# few tokens, so that texts meet and part; 0 is what padding holds, too
TEXT = [st.binary(min_size=1, max_size=most).map(lambda drawn: tuple(byte % 3 for byte in drawn)) for most in (4, 14)]


@st.composite
def pairs(draw, most=12):
    """Contexts and their options; contexts of a few pieces: they share stems, repeat, begin with each other."""
    pieces = draw(st.lists(TEXT[1], min_size=1, max_size=4))
    context = st.lists(st.sampled_from(pieces), min_size=1, max_size=4).map(lambda parts: sum(parts, ()))
    options = st.lists(TEXT[0], min_size=1, max_size=4).map(tuple)
    return draw(st.lists(st.tuples(context, options), min_size=1, max_size=most))


def token_requests(drawn):
    """Requests of `pairs`."""
    return [TokenRequest(*each) for each in drawn]


# fields of a Layout
LAYOUTS = st.fixed_dictionaries(
    {
        "lanes": st.integers(1, 4),
        "step_tokens": st.sampled_from([1, 16, 64]),
        "pair_cost": st.sampled_from([0.0, 1 / 3000, 0.02]),
        "item_limit": st.sampled_from([1, 6, 20, 1024]),
        "row_lengths": st.integers(1, 3),
        "prefill_lengths": st.sampled_from([(8, 4), (5, 3), (512, 128)]),
        "part_steps": st.integers(1, 3),
    }
)
OVERHEADS = st.sampled_from([0, 3, 256])
"""Values of tree.CUT_OVERHEAD: at its own, no text that is this short would become a prefix."""


def see(token, position, before, itself=True):
    """The state of a token that sees the states `before`."""
    return hash((int(token), int(position), itself, *before))


def read_text(tokens):
    """The states of a text that is read from its start."""
    states = []
    for position, token in enumerate(tokens):
        states.append(see(token, position, states))
    return states


def read_piece(columns, used, tokens, positions, reach):
    """The states of a row behind the first `used` columns: each token sees itself and those that reach beyond it."""
    states = []
    for place, (token, position) in enumerate(zip(tokens, positions, strict=True)):
        before = [state for state, end in zip(states, reach, strict=False) if end > place]
        states.append(see(token, position, [*columns[:used], *before], bool(reach[place] > place)))
    return states


class Columns:
    """The prefix of each lane, as the devices hold it."""

    def __init__(self, lanes, room):
        self.lanes = [[EMPTY] * room for _ in range(lanes)]

    def prefill(self, arrays):
        """Writes what `prefill_arrays` feeds, padding included."""
        for columns, tokens, positions, reach in zip(self.lanes, *arrays, strict=True):
            start = int(positions[0])
            assert start + len(tokens) <= len(columns), "written beyond the room"
            columns[start : start + len(tokens)] = read_piece(columns, start, tokens, positions, reach)

    def step(self, shape, depths, tokens, positions, reach):
        """The states of all tokens of a step, a list a lane."""
        starts = range(0, shape.tokens, shape.length)
        return [
            list(
                itertools.chain.from_iterable(
                    read_piece(columns, int(depth), *(each[lane, start : start + shape.length] for each in fed))
                    for start in starts
                )
            )
            for lane, (columns, depth) in enumerate(zip(self.lanes, depths, strict=True))
            for fed in [(tokens, positions, reach)]
        ]


def expected_reads(asked):
    """What each option should be scored from: a list of (state, token) an option, over all requests."""
    found = []
    for request in asked:
        for option in request.options:
            states = read_text((*request.context, *option[:-1]))
            found.append(list(zip(states[len(request.context) - 1 :], option, strict=True)))
    return found
