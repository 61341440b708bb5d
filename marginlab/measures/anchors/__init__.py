"""Anchor form of the concentration: the share of a class near one point."""
