"""Model files: named models, headers, calibrations."""

from .named import NamedModel, is_pulled, named_models, pull, resolve

__all__ = ["NamedModel", "is_pulled", "named_models", "pull", "resolve"]
