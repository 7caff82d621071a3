"""Ways to score an answer; `table` lists them all."""
