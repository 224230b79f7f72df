"""Trained weights at work: evaluate and predict."""
