"""What the base model is trained on: which items, with which answer, in which words; needs no JAX."""
