"""What ``sdbridge doctor`` checks: a file per kind of check, each giving findings."""
