"""Forms in which other programs run a network: graphs and configurations, no files."""
