"""From the engine's answers to the fitness of a whole population."""
