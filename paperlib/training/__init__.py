"""Adversarial training: distributions of attacks, losses, one trainer for every recipe."""
