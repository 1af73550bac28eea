"""On-demand transforms: ordinary vectorised functions of the user's own module.

A transform takes one NumPy array per input, by keyword, each of shape (n,), and returns an array of shape (n,):

    def is_rush_hour(scheduled_hour):
        return (scheduled_hour >= 16) & (scheduled_hour <= 19)

Numbers and bools arrive as float64 with NaN for NULL, texts as object arrays with None, timestamps as
datetime64[us] with NaT, vectors as (n, dimension) float32. NaN, NaT and None in the result are NULL. The result for a
row must depend on that row only: serving runs it on the rows of several requests at once, training on all. A view names
the function with the SHA-256 of its source; a process whose source differs refuses the view. Only modules that the
process was told to trust are imported, and no code travels over the wire.
"""

from foresight.transforms.functions import TransformSet, Untrusted, source_sha256

__all__ = ["TransformSet", "Untrusted", "source_sha256"]
