"""Figures and tables drawn from records, never from hard-coded numbers."""
