"""From a profile to results: stages, keys, the store, published records, and running them in parallel."""
