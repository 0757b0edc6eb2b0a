"""Paged K/V caches: pages and their ref counts, storage on the device, transfers to and from it."""
