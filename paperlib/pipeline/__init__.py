"""From a profile to results: stages, keys, stored and published results, parallel computation."""
