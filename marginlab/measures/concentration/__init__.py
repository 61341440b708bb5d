"""Concentration of augmented data: augmented distances, sigma, and its controls."""
