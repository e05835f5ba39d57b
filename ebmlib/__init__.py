"""Helpers of the book *Energy-Based Models, Measured*: flat modules, made to be read and copied.

Throughout, an energy is a callable `(batch, *event) -> (batch,)` and `log p(x) = -E(x) - log Z`:
lower is more plausible.
"""

__version__ = "0.1.0"
