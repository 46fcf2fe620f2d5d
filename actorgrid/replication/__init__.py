"""The pure core: one replica of one partition, its log entries and its sessions."""
