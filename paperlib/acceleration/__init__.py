"""Faster attacks with the same results: folding of batch norm into convolutions, memory management, precision."""

from paperlib.acceleration.folding import Folded, fold

__all__ = ["Folded", "fold"]
