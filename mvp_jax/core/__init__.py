"""Arrays and pytrees in, arrays and pytrees out: masks, selection, units, votes, similarities. JAX and NumPy only."""
