"""Playground: samples of one model under settings that a person changes on a local page."""
