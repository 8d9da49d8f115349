"""Two random views of every image: what a SimCLR network learns to see as one thing.

`two_views(…, method=)` says which form makes the pixels: "plain" (`plain.py`, one view at a time), "batched"
(`augment.py`, a whole batch at a time) or "auto", which is batched. Both forms get the same random parameters
(`parameters.py`), and their views agree to 1e-5 for images of up to 40 pixels, and to 1e-4 for larger ones.
"""

from .augment import METHODS, two_views  # draws the parameters, then lets one of the forms make the pixels
from .named import recipe_of  # the names of other changes, in order
from .transforms import check_images, to_float  # from bytes to [0,1]: all that evaluation does to an image

__all__ = ["METHODS", "check_images", "recipe_of", "to_float", "two_views"]
