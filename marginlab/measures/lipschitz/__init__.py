"""Lipschitz constants, from below and from above."""
