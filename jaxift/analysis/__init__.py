"""What the scores say: consistency, statistics and the study's tables; needs no JAX."""
