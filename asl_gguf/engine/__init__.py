"""From a prompt to the cells of a context."""
