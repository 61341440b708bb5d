"""Certificates: every bound of an encoder, over a grid and for new images."""
