"""Functions with derivatives of their own: read, kept where that is asked for, and told where they are lost."""
