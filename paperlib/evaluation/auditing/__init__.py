"""The audit of a network: checks of whether a claimed robust accuracy can be believed."""
