"""tagseg turns image tags into segmentation masks."""

__version__ = "0.1.0"
