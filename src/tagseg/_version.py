"""The version of this package, in the one place that every module may import."""

__version__ = "0.2.0.dev0"
