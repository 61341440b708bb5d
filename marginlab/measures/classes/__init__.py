"""Class centers: divergence, variance within classes, angles, neural collapse."""
