"""Who plays whom, and when: the order in which pairs of blocks are worked on."""

from __future__ import annotations

import functools

Pair = tuple[int, int]


@functools.cache
def rounds(players: int) -> list[list[Pair]]:
    """All pairs (i ≤ j) of an even number of players, in rounds in which everybody plays exactly once.

    The schedule of a chess tournament: the last one stays, the others rotate. Each with itself comes at
    the end: those tiles are the quickest, and fill the gaps when several rounds are played at once.
    """
    others = players - 1
    schedule = []
    for r in range(others):
        pairs = [(r, others)] + [((r + k) % others, (r - k) % others) for k in range(1, players // 2)]
        schedule.append([(min(pair), max(pair)) for pair in pairs])
    return [*schedule, [(i, i) for i in range(players)]]
