"""The host: the asyncio shell around partitions, actors and the store."""
