"""Ranking: search and recommendation."""
