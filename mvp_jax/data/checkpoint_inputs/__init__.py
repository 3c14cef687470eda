"""What a checkpoint's own tokeniser and image processor make of texts and pictures."""
