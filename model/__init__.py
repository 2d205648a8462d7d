"""What is learned: the model, and how it is spoken to."""
