"""The ledger: how much memory a recorded graph keeps for its backward pass, op by op."""

from __future__ import annotations

from .autograd import Node, Tensor
from .guard import arrays_in


class Ledger(dict[str, int]):
    """Bytes kept for the way back, per op; prints as a table, largest first."""

    @property
    def total(self) -> int:
        return sum(self.values())

    def __str__(self) -> str:
        rows = sorted(self.items(), key=lambda row: -row[1])
        return "\n".join(f"{size / 2**20:10.2f} MiB  {name}" for name, size in [*rows, ("total", self.total)])


def saved_bytes(tensor: Tensor) -> Ledger:
    """What the graph below `tensor` keeps alive for `backward`.

    An array that several vjps share is counted once, for the op that was computed first; leaves (the
    parameters) are not counted.
    """
    nodes: set[Node] = set()
    frontier = [tensor._node] if tensor._node is not None else []
    while frontier:
        node = frontier.pop()
        if node not in nodes:
            nodes.add(node)
            frontier.extend(parent for parent in node.parents if parent is not None)
    ledger = Ledger()
    seen = {id(node.leaf) for node in nodes if node.leaf is not None}
    for node in sorted(nodes, key=lambda node: node.age):
        for array in arrays_in(node.vjp):
            if id(array) not in seen:
                seen.add(id(array))
                ledger[node.name] = ledger.get(node.name, 0) + array.nbytes
    return ledger
