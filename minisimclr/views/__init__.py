"""Two random views of every image: what a SimCLR network learns to see as one thing."""

from .augment import to_float, two_views

__all__ = ["to_float", "two_views"]
