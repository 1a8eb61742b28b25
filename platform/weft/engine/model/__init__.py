"""The decoder: configuration read from Hugging Face, weights loaded strictly, one forward pass."""
