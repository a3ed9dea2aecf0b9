"""Profiles: the settings of one scale, read from TOML files and checked before any computation."""
