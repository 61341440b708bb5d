"""The theorems: each turns measured quantities into a bound."""
