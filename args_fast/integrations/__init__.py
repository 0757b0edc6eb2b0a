"""Guided decoding from within other libraries, one module for each."""
