"""Graphs of images: their largest cliques, and partitions of the augmentation graph."""
