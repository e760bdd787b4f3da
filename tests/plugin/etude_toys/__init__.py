"""Papers that third parties might bring: one that works and one whose trials go wrong in every way."""
