"""Shap-E: a coloured 3-D object from words or a picture, by published weights."""
