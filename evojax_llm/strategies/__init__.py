"""Published systems, stock evosax algorithms and plain baselines."""
