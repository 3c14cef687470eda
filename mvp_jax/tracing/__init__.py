"""How `graph` and `compact.slim` read a traced function: dimensions, a rule for each primitive, zeros, replay."""
