"""Commands about data: check, preview, the Open Images index."""
