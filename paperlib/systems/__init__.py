"""Every system of the comparison: as data (a recipe), and as a network."""
