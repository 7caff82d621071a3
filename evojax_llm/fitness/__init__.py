"""Tasks, prompts, scorers and the engine that scores a whole population."""
