"""What only a reproduction needs: VOC07, retrieval."""
