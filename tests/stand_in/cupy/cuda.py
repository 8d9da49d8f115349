"""cupy.cuda, as far as a program asks whether there is a GPU and how much memory is in use."""

from __future__ import annotations

from typing import Any


def is_available() -> bool:
    return True


class Device:
    """The only device there is."""

    def __init__(self, device: Any = None) -> None:
        self.id = 0
        self.compute_capability = "90"
        self.mem_info = (64 << 30, 64 << 30)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *problem: Any) -> None:
        pass

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return "<CUDA Device 0>"


class Stream:
    """Everything here happens at once, in order."""

    null: Any

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *problem: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    return Stream.null


class MemoryPool:
    """A memory pool that does not count the memory that NumPy holds."""

    @classmethod
    def default(cls) -> MemoryPool:
        return _pool

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0

    def free_all_blocks(self, stream: Any = None) -> None:
        pass


_pool = MemoryPool()
