"""Everything at once: two controllers, their database, three hosts, and what happens to them."""
