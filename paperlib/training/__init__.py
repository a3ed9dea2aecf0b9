"""Adversarial training: attack distributions, losses, and one trainer for all recipes."""
