"""What makes attacks fast without changing a result: batch norm folded into convolutions, memory, precision."""

from paperlib.acceleration.folding import Folded, fold

__all__ = ["Folded", "fold"]
