"""Finished models over HTTP: `start.serve` answers requests in batches until it is told to stop.

Here nothing is imported: FastAPI and uvicorn are an extra.
"""
