"""Plain searches over the weights of the experts."""
