"""What came out, for people: sentences, tables, figures, and one page; needs no JAX."""
