"""Profiles: what is computed at which scale, read from TOML files and checked before anything starts."""
