"""One file a family: what other libraries call its parameters, and how these become ours."""
