"""Compiled programs that are kept for later work of the same shapes."""

import collections
from collections.abc import Callable, Hashable
from typing import Any

import jax

from jaxift.progress import COMPILING, phase


class Compiled:
    """At most `size` programs; the least recently used one is let go."""

    def __init__(self, size: int):
        self.size = size
        self._programs: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """The program that was built for `key` before, or the one built now."""
        if key not in self._programs:
            with phase(COMPILING):
                self._programs[key] = build()
            if len(self._programs) > self.size:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]


def described(tree: Any) -> Hashable:
    """Shapes, types and layouts of a tree's arrays, as a key."""
    return tuple((leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(tree))
