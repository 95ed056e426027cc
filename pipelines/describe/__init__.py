"""Describe: pictures, sounds and clips put into words, with a confidence and the nearest concepts."""
