"""The order in which C++ leaves equal scores.

Caffe2's detection operators sort with ``std::sort`` and ``std::partial_sort``, which are not stable. Scores
tie where an image is uniform or a probability saturates, and limits on numbers then decide by order. These
are the algorithms of libstdc++, with which the runtime was built (introsort with insertion below 17
elements; heap selection), so that the same boxes survive. They are run only where scores do tie.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SMALL = 16  # below, a part is left to the insertion sort at the end

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def best_first(scores: Floats, limit: int | None = None) -> Integers:
    """Return indices (n,) of scores (N,), the highest first, as std::sort leaves them.

    Args:
        scores: without NaN.
        limit: only so many, as std::partial_sort leaves them; None, or N and more, sorts all.
    """
    count = len(scores)
    n = count if limit is None else min(limit, count)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order[: n + 1]]
    if not (ranked[1:] == ranked[:-1]).any():
        return order[:n]
    sorter = _Sorter(scores.tolist())
    if n == count:
        sorter.sort()
    else:
        sorter.partial_sort(n)
    return np.array(sorter.order[:n], dtype=np.int64)


class _Sorter:
    """Sorts ``order``, the indices of scores; an index comes before another if its score is higher."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores
        self.order = list(range(len(scores)))

    def _before(self, a: int, b: int) -> bool:
        return self.scores[a] > self.scores[b]

    def sort(self) -> None:
        """As std::sort."""
        count = len(self.order)
        if count < 2:
            return
        parts = [(0, count, 2 * (count.bit_length() - 1))]
        while parts:  # the parts are disjoint, so their order does not matter
            first, last, depth = parts.pop()
            while last - first > _SMALL:
                if depth == 0:
                    self._heap_sort(first, last)
                    break
                depth -= 1
                cut = self._partition(first, last)
                parts.append((cut, last, depth))
                last = cut
        for place in range(1, count):
            self._insert(place)

    def partial_sort(self, middle: int) -> None:
        """As std::partial_sort: the best come first, in order."""
        self._make_heap(0, middle)
        worst = self.scores[self.order[0]]
        for place in range(middle, len(self.order)):
            if self.scores[self.order[place]] > worst:
                self._pop_heap(0, middle, place)
                worst = self.scores[self.order[0]]
        self._sort_heap(0, middle)

    def _insert(self, place: int) -> None:
        order, value = self.order, self.order[place]
        score = self.scores[value]
        while place > 0 and score > self.scores[order[place - 1]]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = value

    def _partition(self, first: int, last: int) -> int:
        """Partition around the median of three, put in front; return where the second part begins."""
        order, scores = self.order, self.scores
        pivot = self._median(first + 1, first + (last - first) // 2, last - 1)
        order[first], order[pivot] = order[pivot], order[first]
        score = scores[order[first]]
        low, high = first + 1, last
        while True:
            while scores[order[low]] > score:
                low += 1
            high -= 1
            while score > scores[order[high]]:
                high -= 1
            if low >= high:
                return low
            order[low], order[high] = order[high], order[low]
            low += 1

    def _median(self, a: int, b: int, c: int) -> int:
        x, y, z = (self.order[place] for place in (a, b, c))
        if self._before(x, y):
            if self._before(y, z):
                return b
            return c if self._before(x, z) else a
        if self._before(x, z):
            return a
        return c if self._before(y, z) else b

    def _heap_sort(self, first: int, last: int) -> None:
        self._make_heap(first, last)
        self._sort_heap(first, last)

    def _make_heap(self, first: int, last: int) -> None:
        size = last - first
        for parent in range((size - 2) // 2, -1, -1):
            self._sift(first, parent, size, self.order[first + parent])

    def _sort_heap(self, first: int, last: int) -> None:
        for end in range(last - 1, first, -1):
            self._pop_heap(first, end, end)

    def _pop_heap(self, first: int, last: int, place: int) -> None:
        """Put the worst of the heap at a place outside, and what was there into the heap."""
        value = self.order[place]
        self.order[place] = self.order[first]
        self._sift(first, 0, last - first, value)

    def _sift(self, first: int, hole: int, size: int, value: int) -> None:
        """Let a hole sink to the bottom, then let the value rise from there."""
        order, top, child = self.order, hole, hole
        while child < (size - 1) // 2:
            child = 2 * (child + 1)
            if self._before(order[first + child], order[first + child - 1]):
                child -= 1
            order[first + hole] = order[first + child]
            hole = child
        if size % 2 == 0 and child == (size - 2) // 2:
            child = 2 * child + 1
            order[first + hole] = order[first + child]
            hole = child
        parent = (hole - 1) // 2
        while hole > top and self._before(order[first + parent], value):
            order[first + hole] = order[first + parent]
            hole, parent = parent, (parent - 1) // 2
        order[first + hole] = value
