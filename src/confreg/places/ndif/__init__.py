"""Running traces on an NDIF server, and an NDIF server of one's own."""
