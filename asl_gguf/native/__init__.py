"""The library: loading it, bindings of its C API, sessions, devices, models and their vocabulary."""
