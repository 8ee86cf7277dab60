"""Images with text: captions that match or do not, and questions with answers."""
