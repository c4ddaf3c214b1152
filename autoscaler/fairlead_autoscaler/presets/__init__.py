"""The controllers that others run, behind the same call as our core, so that a bench can set them side by side."""
