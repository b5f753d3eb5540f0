"""Places where traces run: profiles, checks of a place, and a client of NDIF servers."""
