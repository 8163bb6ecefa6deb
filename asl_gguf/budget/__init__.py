"""How many tokens of a prompt are kept."""
