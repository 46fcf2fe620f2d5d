"""RocksDB behind a small interface."""
