"""What only a reproduction needs: VOC07, retrieval, filters, export of the official layout."""
