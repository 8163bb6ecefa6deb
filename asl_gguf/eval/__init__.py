"""How good the answers to long prompts are."""
