"""How a feature set is prepared: what its slices are, which tasks they take, how they are committed."""
