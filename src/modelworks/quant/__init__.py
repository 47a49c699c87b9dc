"""Quantisation from outside: a built model's matrices in 8 or 4 bits, calibrated, saved in formats that others read."""
