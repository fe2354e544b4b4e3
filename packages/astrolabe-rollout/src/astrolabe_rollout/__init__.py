"""Astrolabe."""
