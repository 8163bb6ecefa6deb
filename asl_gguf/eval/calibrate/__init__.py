"""Which layer selects best on a model."""
