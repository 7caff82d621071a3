"""What a genome is: how it is made, expressed as a model and exported."""
