"""Builds the training tables out of freely licensed packages: ``python -m training.data WORK OUT``."""
