"""Alignment of views, and uniformity and confusion of images."""
