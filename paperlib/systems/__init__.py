"""All systems of the comparison: their recipes (data), and the networks built from them."""
