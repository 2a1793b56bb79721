"""What a model needs and what a machine has, without torch."""
