"""The frameworks that fpfast is compared with, each doing the same work as fast as it can; one file per peer."""
