"""What was kept of a prompt, shown."""
