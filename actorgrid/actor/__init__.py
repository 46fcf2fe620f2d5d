"""What users write: actor classes, their fields and collections, and the codecs of their methods."""
