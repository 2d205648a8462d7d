"""What is learned: the model, and how it is prompted."""
