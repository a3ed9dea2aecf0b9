"""The audit of a network: what can be believed of a robust accuracy."""
