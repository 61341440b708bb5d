"""Spectra of features: effective ranks and decay."""
