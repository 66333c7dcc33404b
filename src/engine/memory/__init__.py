"""Memory as a planned quantity: budget, projection, measure, governor, and the cage that enforces it."""
