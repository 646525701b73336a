"""The version of the package: one place, read by the build and by `zbroker --version`."""

__version__ = "0.1.0"
