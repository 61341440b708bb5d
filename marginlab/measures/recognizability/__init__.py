"""The recognizability index, and the bank of unrecognizable images that it is measured against."""
