"""The client: map, connections, retry, proxies. Its public names are in `actorgrid.grid`."""
