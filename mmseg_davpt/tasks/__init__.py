"""Task files: what was trained on one frozen trunk, without the trunk."""
