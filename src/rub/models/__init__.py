"""Networks, and the formats in which people publish their weights."""
